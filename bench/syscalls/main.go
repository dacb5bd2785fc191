// Measured: a Go bootstrap's habits.
package main

import (
	"bytes"
	"compress/gzip"
	"context"
	"crypto/rand"
	"crypto/tls"
	"fmt"
	"io"
	"net"
	"net/http"
	"net/http/httptest"
	"os"
	"os/exec"
	"os/signal"
	"os/user"
	"path/filepath"
	"runtime"
	"runtime/debug"
	"runtime/pprof"
	"sync"
	"syscall"
	"time"
)

func must(err error) {
	if err != nil {
		panic(err)
	}
}

func main() {
	folder, err := os.MkdirTemp("", "measured")
	must(err)
	defer os.RemoveAll(folder)
	var profile bytes.Buffer
	must(pprof.StartCPUProfile(&profile))
	var group sync.WaitGroup
	for n := 0; n < 200; n++ {
		group.Add(1)
		go func(n int) {
			defer group.Done()
			hoard := make([]byte, 1<<20)
			rand.Read(hoard[:100])
			time.Sleep(time.Millisecond)
			for i := range hoard {
				hoard[i] = byte(i * n)
			}
		}(n)
	}
	group.Wait()
	runtime.LockOSThread()
	runtime.GC()
	debug.FreeOSMemory()

	hello := http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) { io.Copy(w, r.Body) })
	for _, server := range []*httptest.Server{httptest.NewServer(hello), httptest.NewTLSServer(hello)} {
		reply, err := server.Client().Post(server.URL, "text/plain", bytes.NewReader(make([]byte, 100000)))
		must(err)
		io.Copy(io.Discard, reply.Body)
		reply.Body.Close()
		server.Close()
	}
	_ = tls.Config{}
	ctx, cancel := context.WithTimeout(context.Background(), 300*time.Millisecond)
	net.DefaultResolver.LookupHost(ctx, "example.com")
	net.LookupHost("localhost")
	cancel()
	listener, err := net.Listen("unix", filepath.Join(folder, "s"))
	must(err)
	go func() { c, _ := listener.Accept(); c.Close() }()
	c, err := net.Dial("unix", filepath.Join(folder, "s"))
	must(err)
	io.ReadAll(c)
	listener.Close()
	udp, err := net.ListenPacket("udp", "127.0.0.1:0")
	must(err)
	udp.WriteTo([]byte("x"), udp.LocalAddr())
	udp.ReadFrom(make([]byte, 4))
	net.Interfaces()
	net.InterfaceAddrs()

	must(exec.Command("sh", "-c", "ls / | sort").Run())
	slow, cancel := context.WithTimeout(context.Background(), 50*time.Millisecond)
	exec.CommandContext(slow, "sleep", "5").Run()
	cancel()
	command := exec.Command("cat")
	command.SysProcAttr = &syscall.SysProcAttr{Setsid: true, Pdeathsig: syscall.SIGKILL}
	command.Stdin = bytes.NewReader(make([]byte, 100000))
	command.Output()
	signals := make(chan os.Signal, 1)
	signal.Notify(signals, syscall.SIGTERM)
	syscall.Kill(syscall.Getpid(), syscall.SIGTERM)
	<-signals

	name := filepath.Join(folder, "f")
	must(os.WriteFile(name, make([]byte, 300000), 0o600))
	file, err := os.OpenFile(name, os.O_RDWR, 0)
	must(err)
	other, err := os.Create(name + "2")
	must(err)
	io.Copy(other, file)
	syscall.Flock(int(file.Fd()), syscall.LOCK_EX)
	area, err := syscall.Mmap(int(file.Fd()), 0, 4096, syscall.PROT_READ, syscall.MAP_SHARED)
	must(err)
	syscall.Munmap(area)
	file.Sync()
	file.Truncate(10)
	file.ReadAt(make([]byte, 2), 0)
	file.WriteAt([]byte("x"), 1)
	file.Close()
	zipped := gzip.NewWriter(other)
	zipped.Write(make([]byte, 100000))
	zipped.Close()
	os.Rename(name, name+"3")
	os.Symlink("f", filepath.Join(folder, "l"))
	os.Link(name+"3", name+"4")
	os.Chtimes(name+"3", time.Now(), time.Now())
	os.Chmod(name+"3", 0o644)
	os.Chown(name+"3", os.Getuid(), os.Getgid())
	filepath.Walk("/etc/ssl", func(string, os.FileInfo, error) error { return nil })
	user.Current()
	os.Hostname()
	fmt.Fprintln(io.Discard, runtime.NumCPU(), os.Getpagesize())
	time.Sleep(150 * time.Millisecond)
	pprof.StopCPUProfile()
}
