package guestagent

import (
	"os"
	"os/signal"
	"sync"
	"syscall"

	"golang.org/x/sys/unix"
)

// children starts processes and waits for them. As process 1 it reaps every orphan as well, in one place, so that no
// exit status is taken by the wrong waiter.
type children struct {
	mu    sync.Mutex
	init  bool // this is process 1
	alive map[int]*child
}

// child is a started process, the leader of a session of its own.
type child struct {
	pid    int
	done   chan struct{} // closed when it has ended; then status is set
	status syscall.WaitStatus
	kids   *children
}

func newChildren() *children { return &children{alive: map[int]*child{}} }

// newInitChildren is for process 1. Its goroutine reaps for as long as the process lives.
func newInitChildren() *children {
	c := newChildren()
	c.init = true
	ended := make(chan os.Signal, 1)
	signal.Notify(ended, unix.SIGCHLD)
	go func() {
		for range ended {
			c.reap()
		}
	}()
	return c
}

// start starts a process. The error is exec's.
func (c *children) start(path string, argv []string, attr *syscall.ProcAttr) (*child, error) {
	// The lock keeps reap from taking the status of a child that is not in the table yet.
	c.mu.Lock()
	defer c.mu.Unlock()
	pid, err := syscall.ForkExec(path, argv, attr)
	if err != nil {
		return nil, err
	}
	k := &child{pid: pid, done: make(chan struct{}), kids: c}
	c.alive[pid] = k
	if !c.init {
		go c.wait(pid)
	}
	return k, nil
}

// wait waits for one child, leaving the status with the kernel until the lock is held: signal can't hit a reused pid.
func (c *children) wait(pid int) {
	for {
		err := unix.Waitid(unix.P_PID, pid, nil, unix.WEXITED|unix.WNOWAIT, nil)
		if err != unix.EINTR {
			break
		}
	}
	c.mu.Lock()
	defer c.mu.Unlock()
	var status syscall.WaitStatus
	_, _ = syscall.Wait4(pid, &status, 0, nil)
	c.ended(pid, status)
}

// reap takes the status of every child that has ended.
func (c *children) reap() {
	c.mu.Lock()
	defer c.mu.Unlock()
	for {
		var status syscall.WaitStatus
		pid, err := syscall.Wait4(-1, &status, syscall.WNOHANG, nil)
		switch {
		case err == syscall.EINTR:
		case err != nil || pid <= 0:
			return
		default:
			c.ended(pid, status)
		}
	}
}

func (c *children) ended(pid int, status syscall.WaitStatus) {
	if k, ours := c.alive[pid]; ours {
		delete(c.alive, pid)
		k.status = status
		close(k.done)
	}
}

// signal signals the process group of a child that has not ended.
func (k *child) signal(sig syscall.Signal) { k.kill(-k.pid, sig) }

// signalOne signals a child that has not ended, and none of its own children.
func (k *child) signalOne(sig syscall.Signal) { k.kill(k.pid, sig) }

func (k *child) kill(pid int, sig syscall.Signal) {
	k.kids.mu.Lock()
	defer k.kids.mu.Unlock()
	if k.kids.alive[k.pid] == k {
		_ = syscall.Kill(pid, sig)
	}
}
