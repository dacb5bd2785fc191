// Measured: a Rust bootstrap's habits, with the standard library.
use std::io::{Read, Write};
use std::net::{TcpListener, TcpStream, ToSocketAddrs, UdpSocket};
use std::os::unix::net::UnixStream;
use std::process::{Command, Stdio};
use std::sync::{mpsc, Arc, Barrier, Condvar, Mutex};
use std::{env, fs, thread, time::Duration};

fn main() -> std::io::Result<()> {
    let folder = env::temp_dir().join(format!("measured-{}", std::process::id()));
    fs::create_dir_all(folder.join("a/b"))?;
    let (send, receive) = mpsc::channel();
    let barrier = Arc::new(Barrier::new(8));
    for number in 0..8 {
        let (send, barrier) = (send.clone(), barrier.clone());
        thread::Builder::new().name("worker".into()).stack_size(1 << 20).spawn(move || {
            barrier.wait();
            send.send(vec![number as u8; 1 << 20]).unwrap();
        })?;
    }
    drop(send);
    let total: usize = receive.iter().map(|part| part.len()).sum();
    let pair = (Mutex::new(total), Condvar::new());
    let _ = pair.1.wait_timeout(pair.0.lock().unwrap(), Duration::from_millis(5)).unwrap();
    thread::park_timeout(Duration::from_millis(5));
    thread::sleep(Duration::from_millis(1));
    thread::available_parallelism()?;

    let server = TcpListener::bind("127.0.0.1:0")?;
    let address = server.local_addr()?;
    let echo = thread::spawn(move || -> std::io::Result<()> {
        let (mut peer, _) = server.accept()?;
        let mut buffer = [0; 5];
        peer.read_exact(&mut buffer)?;
        peer.write_all(&buffer)
    });
    let mut client = TcpStream::connect_timeout(&address, Duration::from_secs(1))?;
    client.set_nodelay(true)?;
    client.set_read_timeout(Some(Duration::from_secs(1)))?;
    client.write_all(b"hello")?;
    client.read_exact(&mut [0; 5])?;
    client.shutdown(std::net::Shutdown::Both).ok();
    echo.join().unwrap()?;
    let udp = UdpSocket::bind("127.0.0.1:0")?;
    udp.send_to(b"x", udp.local_addr()?)?;
    udp.recv_from(&mut [0; 4])?;
    let (mut one, mut two) = UnixStream::pair()?;
    one.write_all(b"x")?;
    two.read_exact(&mut [0; 1])?;
    let _ = "localhost:80".to_socket_addrs();

    let mut child = Command::new("cat").stdin(Stdio::piped()).stdout(Stdio::piped()).spawn()?;
    child.stdin.take().unwrap().write_all(&[0; 1000])?;
    child.wait_with_output()?;
    let mut slow = Command::new("sleep").arg("5").current_dir("/").spawn()?;
    slow.kill()?;
    slow.wait()?;

    let file = folder.join("f");
    fs::write(&file, vec![0; 300_000])?;
    fs::copy(&file, folder.join("g"))?;
    fs::rename(folder.join("g"), folder.join("h"))?;
    fs::hard_link(&file, folder.join("i"))?;
    std::os::unix::fs::symlink("f", folder.join("l"))?;
    fs::set_permissions(&file, std::os::unix::fs::PermissionsExt::from_mode(0o600))?;
    let open = fs::OpenOptions::new().read(true).write(true).open(&file)?;
    open.sync_all()?;
    open.sync_data()?;
    open.set_len(10)?;
    std::os::unix::fs::FileExt::read_at(&open, &mut [0; 4], 0)?;
    std::os::unix::fs::FileExt::write_at(&open, b"x", 0)?;
    for entry in fs::read_dir("/etc")? {
        entry?.metadata().ok();
    }
    fs::canonicalize(folder.join("l"))?;
    let mut to = fs::File::create(folder.join("c"))?;
    std::io::copy(&mut fs::File::open(&file)?, &mut to)?;
    fs::remove_dir_all(&folder)
}
