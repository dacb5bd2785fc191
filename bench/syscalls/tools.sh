#!/bin/bash
# Measured: what shell bootstraps use. Every tool is optional: what a host has not got is passed over.
cd "$(mktemp -d)" || exit 1
try() { command -v "$1" >/dev/null && timeout 20 "$@"; }
{
  seq 20000 | sort -R | sort -n --parallel=2 | uniq -c | head -3
  mkdir -p a/b && cp -a /etc/ssl a/ && cp --reflink=auto a/ssl/openssl.cnf a/c && mv a/c a/d && ln -s d a/l && ln a/d a/h
  find a -type f -newermt 2000-01-01 -exec stat {} + | wc && du -s a && df . && ls -laR a && rm -r a/ssl
  tar czf a.tgz a && tar xzf a.tgz -C a/b && try xz -T2 -k a.tgz && try zstd -q -T2 a.tgz && try bzip2 -k a.tgz
  try zip -qr a.zip a && try unzip -qo a.zip -d a/z && gzip -k a/d && zcat a/d.gz | wc && split -b 100 a/d part- && cat part-*
  dd if=/dev/zero of=zero bs=64k count=4 conv=fsync && truncate -s 1M zero && fallocate -l 2M zero && shred -n1 zero && cmp zero zero
  mkfifo pipe && { cat pipe & echo x >pipe; wait; } && flock zero true && touch -d yesterday a/d && chmod 600 a/d && chown "$(id -u)" a/d
  awk 'BEGIN { "date" | getline d; print d; srand(); print rand() }' && sed -i s/a/b/ a/d && grep -r x a ; diff -r a a ; patch -v
  echo '{"a": [1, 2]}' | try jq '.a | add' ; try sqlite3 s.db 'pragma journal_mode=wal; create table t(a); insert into t values (1);'
  try openssl req -x509 -newkey rsa:2048 -nodes -subj /CN=x -keyout k -out c ; try openssl dgst -sha256 k ; sha256sum k
  try git init -q g && git -C g -c user.name=a -c user.email=b commit -q --allow-empty -m x && git -C g gc -q ; git clone -q g g2
  try perl -MPOSIX -MSocket -MFcntl -e 'fork || exit; wait; socketpair(A, B, AF_UNIX, SOCK_STREAM, 0); alarm 1; print time, getpwuid($<)'
  try python3 -c 'import ssl, sqlite3, ctypes, subprocess; subprocess.run(["true"])' ; try convert -size 50x50 xc:red x.png
  ps aux ; top -bn1 ; free ; uptime ; nproc ; uname -a ; id ; env ; getent hosts localhost ; hostname ; ip addr ; ss -lt ; lscpu
  timeout 1 sleep 2 ; nice -n 1 true ; ionice -c 3 true ; chrt -b 0 true ; taskset -c 0 true ; nohup true ; setsid true ; stdbuf -oL echo x
  xargs -P4 -n1 echo < <(seq 8) ; (ulimit -n 100; trap 'echo t' TERM; kill -TERM $BASHPID) ; exec 5<>/dev/null ; read -t 0.1 <&5
  tail -f a/d & tailing=$! ; sleep 0.2 ; echo y >>a/d ; kill $tailing ; wait ; sync a/d ; mktemp ; tee t <<<x ; getfattr -d t ; setfattr -n user.a t
  if [ -n "$1" ]; then curl -s --max-time 5 "http://$1/" ; curl -s --max-time 2 http://example.invalid/ ; wget -qO- "http://$1/" ; exec 6<>"/dev/tcp/${1/:/\/}" && echo -e "GET / HTTP/1.0\r\n\r" >&6 && cat <&6 ; fi
  try script -qc true /dev/null ; ipcs ; ipcmk -M 100 ; lsof -p $$ ; vmstat ; logger x ; tput cols ; watch -v ; rsync -a a/ r/ ; busybox sh -c 'ls | wc' ; ldd /bin/ls
} </dev/null >/dev/null 2>&1
rm -rf "$PWD"
exit 0
