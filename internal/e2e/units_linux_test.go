// SPDX-License-Identifier: BSD-3-Clause

package e2e

import (
	"errors"
	"fmt"
	"os"
	"path/filepath"
	"regexp"
	"slices"
	"strconv"
	"strings"
	"syscall"
	"testing"

	"golang.org/x/sys/unix"

	"vmux.app/toolkit/internal/netnstest"
)

// startManager runs systemd's manager for users as the user $1, in mount and
// control group namespaces where it looks as if systemd had booted. A second
// process stays outside, to remove the control group in the end.
const startManager = `
set -eu
mkdir "$HOME/cgroup"
mount -t cgroup2 none "$HOME/cgroup"
cgroup=$HOME/cgroup/vmux-e2e-$$
mkdir "$cgroup"
chown -R "$1" "$cgroup"
manager=
trap 'kill -TERM "$manager"' TERM
sh -c 'echo $$ >"$1/cgroup.procs"; shift; exec "$@"' sh "$cgroup" unshare -m -C sh -euc '
	mount -t cgroup2 none /sys/fs/cgroup
	mount -t tmpfs none /run
	mkdir -p /run/systemd/system /run/systemd/unit-root /run/systemd/mount-rootfs "/run/user/$1"
	mount --bind "$XDG_RUNTIME_DIR" "/run/user/$1"
	exec setpriv --reuid="$1" --regid="$2" --clear-groups --inh-caps=-all \
		"$3" --user
' sh "$@" &
manager=$!
wait "$manager" || true # ends at the signal, too
status=0
wait "$manager" || status=$?
[ ! -e "$cgroup/cgroup.kill" ] || echo 1 >"$cgroup/cgroup.kill" # whom a failed test left
while [ -d "$cgroup" ]; do find "$cgroup" -depth -type d -exec rmdir {} + 2>/dev/null || true; done
exit "$status"
`

// manager runs systemd's manager for the user that h is. It takes root.
func (h *host) manager() {
	h.t.Helper()
	for _, name := range []string{"systemctl", "unshare", "setpriv"} {
		need(h.t, name)
	}
	if os.Geteuid() != 0 {
		h.t.Skip("a user's manager in namespaces of its own takes root")
	}
	if h.cred == nil {
		h.notRoot()
	}
	if err := os.Mkdir(h.path("run"), 0o700); err != nil {
		h.t.Fatal(err)
	}
	h.setenv("XDG_RUNTIME_DIR", h.path("run"))
	h.own()
	root := *h
	root.cred = nil
	p := root.spawn("unshare", "-m", "sh", "-c", startManager, "sh", fmt.Sprint(h.cred.Uid), fmt.Sprint(h.cred.Gid), "/usr/lib/systemd/systemd")
	eventually(h.t, "systemd's manager", func() bool {
		select {
		case <-p.done:
			message := "systemd's manager for users does not run here: " + p.output()
			if os.Getenv("CI") == "true" {
				h.t.Fatal(message)
			}
			h.t.Skip(message)
		default:
		}
		_, err := os.Lstat(h.path("run/systemd/private"))
		return err == nil
	})
	eventually(h.t, "systemd's manager to be up", func() bool {
		state := h.run("systemctl", "--user", "show", "--property=SystemState", "--value").stdout
		return state == "running\n" || state == "degraded\n" // by a unit that is not ours
	})
	h.t.Cleanup(func() {
		if exit := p.stop(syscall.SIGTERM); exit != 0 {
			h.t.Errorf("systemd's manager: exit %d", exit)
		}
	})
}

// own gives everything in the host's home to its user.
func (h *host) own() {
	h.t.Helper()
	h.notRoot()
}

// systemctl runs a command of the host's manager.
func (h *host) systemctl(args ...string) string {
	h.t.Helper()
	return strings.TrimSpace(h.ok("systemctl", append([]string{"--user"}, args...)...))
}

// show is a property of a unit.
func (h *host) show(unit, property string) string {
	h.t.Helper()
	return h.systemctl("show", "--property="+property, "--value", unit)
}

// dropIn adds to a unit of the host's.
func (h *host) dropIn(unit, name, text string) {
	h.t.Helper()
	h.put(".config/systemd/user/"+unit+".d/"+name+".conf", text, 0o644)
	h.own()
}

// logFile is where a unit's standard error is, since there is no journal.
func (h *host) logFile(unit string) *logFile {
	h.t.Helper()
	h.dropIn(unit, "log", "[Service]\nStandardError=append:%h/"+unit+".log\n")
	l := &logFile{h, h.path(unit + ".log")}
	h.t.Cleanup(func() {
		if h.t.Failed() {
			h.t.Logf("log of %s:\n%s", unit, l.output())
		}
		if strings.Contains(l.output(), "DATA RACE") {
			h.t.Errorf("%s has a data race:\n%s", unit, l.output())
		}
	})
	return l
}

type logFile struct {
	h    *host
	path string
}

func (l *logFile) output() string {
	b, _ := os.ReadFile(l.path)
	return string(b)
}

// wait waits until there are n lines that match, and gives the last one's
// submatches.
func (l *logFile) wait(n int, pattern string) []string {
	l.h.t.Helper()
	re := regexp.MustCompile(`(?m)` + pattern)
	var m [][]string
	eventually(l.h.t, fmt.Sprintf("line %d of the log that matches %s", n, pattern), func() bool {
		m = re.FindAllStringSubmatch(l.output(), -1)
		return len(m) >= n
	})
	return m[len(m)-1]
}

// kernel reads what the kernel says of a process: fields of /proc/PID/status.
func kernel(t testing.TB, pid string) map[string]string {
	t.Helper()
	b, err := os.ReadFile(filepath.Join("/proc", pid, "status"))
	if err != nil {
		t.Fatal(err)
	}
	fields := make(map[string]string)
	for line := range strings.Lines(string(b)) {
		name, value, _ := strings.Cut(line, ":")
		fields[name] = strings.TrimSpace(value)
	}
	return fields
}

// The agent does all of its work as a service of a user's manager, with every
// directive of its unit: found by its socket, it sees who asks, finds the phone by
// multicast, makes sockets for jobs, reads its configuration again, and comes back
// after every kind of end.
func TestAgentService(t *testing.T) {
	t.Parallel()
	wire(t, func(t *testing.T, n *netnstest.Net) {
		p := farPhone(t, n, "Pocket")
		p.serveOn(":0", "--approve", "always")
		d := newHost(t)
		d.notRoot()
		d.sources()
		log := d.logFile("vmux-agent.service")
		d.manager()
		prefix := "PREFIX=" + d.path(".local")
		if r := d.make(prefix, "install"); r.exit != 0 {
			t.Fatal(r)
		}
		d.env = append(d.env, "PATH="+d.path(".local/bin")+":"+os.Getenv("PATH")) // the agent answers its siblings only
		vmux := func(name string) string { return d.path(".local/bin", name) }

		if r := d.make(prefix, "install-user"); r.exit != 0 || !strings.Contains(r.stdout, "vmux-agent serves ~/.ssh/vmux-agent.sock for nobody") {
			t.Fatal(r)
		}
		if enabled := d.systemctl("is-enabled", "vmux-agent.socket"); enabled != "enabled" {
			t.Errorf("the socket is %s", enabled)
		}
		if info, err := os.Lstat(d.socket()); err != nil || info.Mode() != os.ModeSocket|0o600 {
			t.Fatalf("socket: %v (%v)", info, err)
		}
		state := func(want string) {
			t.Helper()
			if got := d.show("vmux-agent.service", "ActiveState"); got != want {
				t.Errorf("the agent is %s, not %s", got, want)
			}
		}
		state("inactive")
		pid := func() string { return d.show("vmux-agent.service", "MainPID") }

		// The first client starts it.
		if r := d.run("ssh-add", "-l"); r.exit != 1 {
			t.Errorf("before pairing: %v", r)
		}
		state("active")
		pairing := d.spawn(vmux("vmux-pair"), "--url")
		p.ok("vmux-signer", "pair", pairing.wait(`^vmux-pair://\S+`)[0])
		if exit := pairing.ended(); exit != 0 {
			t.Fatalf("vmux-pair: exit %d\n%s", exit, pairing.output())
		}
		eventually(t, "the phone's key", func() bool { return d.run("ssh-add", "-l").exit == 0 })
		if kernel(t, pid())["NoNewPrivs"] != "1" || kernel(t, pid())["Seccomp"] != "2" {
			t.Errorf("not confined: %v", kernel(t, pid()))
		}
		for property, want := range map[string]string{"Type": "exec", "UMask": "0077", "LimitCORE": "0", "MemorySwapMax": "0",
			"MemoryDenyWriteExecute": "yes", "LockPersonality": "yes", "RestrictRealtime": "yes", "RestrictSUIDSGID": "yes",
			"RestrictNamespaces": "yes", "RestrictAddressFamilies": "AF_INET AF_INET6 AF_NETLINK AF_UNIX", "SystemCallArchitectures": "native",
			"KeyringMode": "private", "NoNewPrivileges": "yes", "PrivateUsers": "no", "SystemCallErrorNumber": "1"} {
			got := strings.Fields(d.show("vmux-agent.service", property))
			slices.Sort(got)
			if !slices.Equal(got, strings.Fields(want)) {
				t.Errorf("%s=%q, want %q", property, got, want)
			}
		}

		// It sees who asks, and the phone signs.
		d.write("letter", "text", 0o644)
		d.write("key.pub", d.ok("ssh-add", "-L"), 0o644)
		d.own()
		signed := 0
		sign := func() {
			t.Helper()
			os.Remove(d.path("letter.sig"))
			d.ok("ssh-keygen", "-Y", "sign", "-n", "file", "-f", d.path("key.pub"), d.path("letter"))
			signed++
			line := log.wait(signed, `msg="sign request" outcome=signed .*$`)[0]
			if !strings.Contains(line, " executable="+need(t, "ssh-keygen")+" ") || strings.Contains(line, "forwarded=true") {
				t.Errorf("does not know the client: %s", line)
			}
		}
		sign()

		// Elsewhere by now, the phone is found by multicast.
		p.serving.stop(syscall.SIGTERM)
		p.serveOn(":0", "--approve", "always")
		sign()
		log.wait(1, fmt.Sprintf(`msg=connected .*:%d"? `, p.port()))

		// Its own commands are its siblings, and a job's socket is where such belong.
		if out := d.ok(vmux("vmux-cert"), "run", "--", "sh", "-c", `echo "$SSH_AUTH_SOCK"; ssh-add -l`); !strings.HasPrefix(out, d.path("run")+"/vmux-job-") || !strings.Contains(out, "(ECDSA-CERT)") {
			t.Errorf("a job: %q", out)
		}

		// Reload.
		before := pid()
		d.configure("[policy]\ndefault = \"ask\"\n[[policy.rule]]\nkind = \"sshsig\"\naction = \"refuse\"\n")
		d.own()
		d.systemctl("reload", "vmux-agent.service")
		log.wait(1, `msg="configuration read again" rules=1`)
		if r := d.run("ssh-keygen", "-Y", "sign", "-n", "file", "-f", d.path("key.pub"), d.path("letter")); r.exit == 0 {
			t.Error("the new policy does not count")
		}
		d.configure("# nothing\n")
		d.own()
		d.systemctl("reload", "vmux-agent.service")
		log.wait(1, `msg="configuration read again" rules=0`)
		sign()
		if pid() != before {
			t.Errorf("process %s, then %s", before, pid())
		}

		// Killed, it is started again at once.
		number, err := strconv.Atoi(before)
		if err != nil {
			t.Fatal(err)
		}
		if err := syscall.Kill(number, syscall.SIGKILL); err != nil {
			t.Fatal(err)
		}
		eventually(t, "another agent", func() bool { now := pid(); return now != before && now != "0" })
		sign()

		// Stopped, it is started by the next client.
		d.systemctl("stop", "vmux-agent.service")
		state("inactive")
		if result := d.show("vmux-agent.service", "Result"); result != "success" {
			t.Errorf("stopped with %s", result)
		}
		sign()

		// With a mistake in its configuration it refuses clients one by one, and neither
		// runs in circles nor loses the socket.
		d.configure("bogus = 1\n")
		d.own()
		d.systemctl("stop", "vmux-agent.service")
		const clients = 8 // more than systemd's limit of starts
		for range clients {
			if r := d.run("ssh-add", "-l"); r.exit == 0 {
				t.Errorf("with a broken configuration: %v", r)
			}
		}
		eventually(t, "the last agent to end", func() bool { return d.show("vmux-agent.service", "ActiveState") == "failed" })
		if starts := strings.Count(log.output(), `there is no setting "bogus"`); starts < 1 || starts > clients {
			t.Errorf("%d clients, %d starts", clients, starts)
		}
		if sub := d.show("vmux-agent.socket", "SubState"); sub != "listening" {
			t.Errorf("the socket is %s", sub)
		}
		d.configure("")
		d.own()
		sign()

		if r := d.make(prefix, "uninstall-user"); r.exit != 0 {
			t.Error(r)
		}
		if _, err := os.Lstat(d.socket()); !os.IsNotExist(err) {
			t.Errorf("the socket is left: %v", err)
		}
		if left, err := filepath.Glob(d.path(".config/systemd/user/*.wants/*")); len(left) > 0 || err != nil {
			t.Errorf("left: %q (%v)", left, err)
		}
	})
}

// probeEnv makes the test binary try what a unit should forbid, and write down
// what became of it.
const probeEnv = "VMUX_E2E_PROBE"

func init() {
	if os.Getenv(probeEnv) != "" {
		probe()
		os.Exit(0)
	}
}

func probe() {
	say := func(what string, err error) {
		result := "yes"
		if errno, ok := errors.AsType[syscall.Errno](err); ok {
			result = unix.ErrnoName(errno)
		} else if err != nil {
			result = err.Error()
		}
		fmt.Fprintf(os.Stderr, "probe %s: %s\n", what, result)
	}
	sys := func(number, a, b, c uintptr) error {
		if _, _, errno := unix.RawSyscall(number, a, b, c); errno != 0 {
			return errno
		}
		return nil
	}
	socket := func(family, kind int) error {
		fd, err := unix.Socket(family, kind, 0)
		if err == nil {
			unix.Close(fd)
		}
		return err
	}
	writes := func(path string) error {
		err := os.WriteFile(path, nil, 0o600)
		os.Remove(path)
		return err
	}
	runtimeDir, home := os.Getenv("XDG_RUNTIME_DIR"), os.Getenv("HOME")
	mem, err := unix.Mmap(-1, 0, os.Getpagesize(), unix.PROT_READ|unix.PROT_WRITE|unix.PROT_EXEC, unix.MAP_ANON|unix.MAP_PRIVATE)
	if err == nil {
		unix.Munmap(mem)
	}
	say("writable and executable memory", err)
	const noRandomize = 0x0040000 // of personality(2)
	say("personality", sys(unix.SYS_PERSONALITY, noRandomize, 0, 0))
	say("namespace", unix.Unshare(unix.CLONE_NEWUSER)) // EINVAL with threads
	file := filepath.Join(runtimeDir, "probe")
	say("file", os.WriteFile(file, nil, 0o600))
	say("setuid file", unix.Chmod(file, 0o4700))
	say("chown", unix.Chown(file, os.Getuid(), os.Getgid()))
	say("priority", unix.Setpriority(unix.PRIO_PROCESS, 0, 1))
	self, err := unix.PidfdOpen(os.Getpid(), 0)
	if err == nil {
		_, err = unix.PidfdGetfd(self, 2, 0)
	}
	say("files of a process", err)
	say("packet socket", socket(unix.AF_PACKET, unix.SOCK_DGRAM))
	say("netlink socket", socket(unix.AF_NETLINK, unix.SOCK_RAW))
	say("unix socket", socket(unix.AF_UNIX, unix.SOCK_STREAM))
	say("inet6 socket", socket(unix.AF_INET6, unix.SOCK_STREAM))
	say("write at home", writes(filepath.Join(home, "new")))
	say("write in the signer's home", writes(filepath.Join(home, ".local/share/vmux-signer/new")))
	_, err = os.Readlink(fmt.Sprintf("/proc/%d/exe", os.Getppid())) // the manager, which is the same user's
	say("programs of others", err)
	var core unix.Rlimit
	if err := unix.Getrlimit(unix.RLIMIT_CORE, &core); err != nil {
		say("core", err)
	}
	umask := unix.Umask(0)
	fmt.Fprintf(os.Stderr, "probe core: %d\nprobe umask: %#o\nprobe done: yes\n", core.Max, umask)
}

// What the units forbid is forbidden, and what the programs need is not: told by a
// program that tries, in place of ours, and once unconfined.
func TestServicesAreConfined(t *testing.T) {
	t.Parallel()
	h := newHost(t)
	h.sources()
	self, err := os.Executable()
	if err != nil {
		t.Fatal(err)
	}
	h.put(".local/share/vmux-signer/x", "", 0o600)
	if err := os.Link(self, h.path("probe")); err != nil { // which its own directory may hide
		b, err := os.ReadFile(self)
		if err == nil {
			err = os.WriteFile(h.path("probe"), b, 0o755)
		}
		if err != nil {
			t.Fatal(err)
		}
	}
	results := make(map[string]*logFile)
	for _, unit := range []string{"vmux-agent.service", "vmux-signer.service"} {
		h.dropIn(unit, "probe", "[Unit]\nRequires=\n[Service]\nExecStart=\nExecStart=%h/probe\nEnvironment="+probeEnv+"=yes\n")
		results[unit] = h.logFile(unit)
	}
	h.put(".config/systemd/user/free.service", "[Service]\nExecStart=%h/probe\nEnvironment="+probeEnv+"=yes\nUMask=0022\nLimitCORE=0:1000\n", 0o644)
	results["free.service"] = h.logFile("free.service")
	h.confineAsNewer("vmux-signer.service")
	h.manager()
	prefix := "PREFIX=" + h.path(".local")
	if r := h.make(prefix, "install"); r.exit != 0 {
		t.Fatal(r)
	}
	h.systemctl("daemon-reload")
	const yes = "yes"
	for _, p := range []struct{ what, agent, signer, free string }{
		{"file", yes, yes, yes},
		{"writable and executable memory", "EPERM|EACCES", yes, yes}, // by system call filter, by PR_SET_MDWE
		{"personality", "EPERM", "EPERM", yes},
		{"namespace", "EPERM", "EPERM", "EINVAL"},
		{"setuid file", "EPERM", "EPERM", yes},
		{"chown", "EPERM", "EPERM", yes},
		{"priority", "EPERM", "EPERM", yes},
		{"files of a process", "EPERM", "EPERM", yes},
		{"packet socket", "EAFNOSUPPORT", "EAFNOSUPPORT", "EPERM"},
		{"netlink socket", yes, yes, yes},
		{"unix socket", yes, yes, yes},
		{"inet6 socket", yes, yes, yes},
		{"write at home", yes, "EROFS", yes},
		{"write in the signer's home", yes, yes, yes},
		{"programs of others", yes, "EACCES", yes},
		{"core", "0", "0", "1000"},
		{"umask", "077", "077", "022"},
	} {
		for unit, want := range map[string]string{"vmux-agent.service": p.agent, "vmux-signer.service": p.signer, "free.service": p.free} {
			l := results[unit]
			if l.output() == "" {
				h.systemctl("start", unit)
				l.wait(1, `^probe done: yes$`)
			}
			if got := l.wait(1, `^probe `+regexp.QuoteMeta(p.what)+`: (.*)$`)[1]; !slices.Contains(strings.Split(want, "|"), got) {
				t.Errorf("%s: %s: %s, want %s", unit, p.what, got, want)
			}
		}
	}
}

// confineAsNewer makes systemd before 253, which ignores what needs a namespace in
// a user's manager, do as later ones do.
func (h *host) confineAsNewer(unit string) {
	h.t.Helper()
	h.dropIn(unit, "newer", "[Service]\nPrivateUsers=yes\n")
}

// The signer does its work as a service of a user's manager: devices find it by
// multicast, its owner is asked by a program, which has no more rights than it.
func TestSignerService(t *testing.T) {
	t.Parallel()
	wire(t, func(t *testing.T, n *netnstest.Net) {
		p := &phone{host: newHost(t)}
		p.notRoot()
		p.sources()
		log := p.logFile("vmux-signer.service")
		askpass := p.write("askpass", "#!/bin/sh\nprintf '%s\\n' \"$1\" >>\"$XDG_RUNTIME_DIR/asked\"\ntouch \"$HOME/escaped\" 2>>\"$XDG_RUNTIME_DIR/asked\"\n[ ! -e \"$XDG_RUNTIME_DIR/no\" ]\n", 0o755)
		p.dropIn("vmux-signer.service", "askpass", "[Service]\nEnvironment=SSH_ASKPASS="+askpass+"\nRestartSec=1ms\n")
		p.confineAsNewer("vmux-signer.service")
		p.ok("vmux-signer", "init", "--no-passphrase", "--name", "Pocket")
		p.manager()
		if r := p.make("PREFIX="+p.path(".local"), "install"); r.exit != 0 {
			t.Fatal(r)
		}
		p.systemctl("daemon-reload")
		p.systemctl("enable", "vmux-signer.service")
		if enabled := p.systemctl("is-enabled", "vmux-signer.service"); enabled != "enabled" {
			t.Errorf("the signer is %s", enabled)
		}
		p.systemctl("start", "vmux-signer.service")
		log.wait(1, `^listening on `)

		d := newHost(t)
		d.start = n.B.Start
		pairBy(t, d, p)
		agent := d.agent()
		d.write("letter", "text", 0o600)
		eventually(t, "the phone's key", func() bool { return d.run("ssh-add", "-l").exit == 0 })
		d.write("key.pub", d.ok("ssh-add", "-L"), 0o600)
		sign := func() int {
			os.Remove(d.path("letter.sig"))
			return d.run("ssh-keygen", "-Y", "sign", "-n", "file", "-f", d.path("key.pub"), d.path("letter")).exit
		}
		if exit := sign(); exit != 0 {
			t.Errorf("not signed: exit %d\n%s", exit, agent.output())
		}
		asked, err := os.ReadFile(p.path("run/asked"))
		if err != nil || !strings.Contains(string(asked), "SSH Sign Request") || !strings.Contains(string(asked), "Read-only file system") {
			t.Errorf("asked: %v\n%s", err, asked)
		}
		if _, err := os.Lstat(p.path("escaped")); !os.IsNotExist(err) {
			t.Error("what asks can write into the owner's home")
		}

		// It comes back from a crash with what it has learnt, and still asks.
		before := p.show("vmux-signer.service", "MainPID")
		number, err := strconv.Atoi(before)
		if err != nil {
			t.Fatal(err)
		}
		p.write("run/no", "", 0o600)
		p.own()
		if err := syscall.Kill(number, syscall.SIGKILL); err != nil {
			t.Fatal(err)
		}
		log.wait(2, `^listening on `)
		os.WriteFile(d.path("letter"), []byte("another text"), 0o600)
		if exit := sign(); exit == 0 {
			t.Error("signed though the owner said no")
		}
		agent.wait(`outcome=denied`)
		if now := p.show("vmux-signer.service", "MainPID"); now == before {
			t.Error("still the same process")
		}
		p.systemctl("stop", "vmux-signer.service")
		if result := p.show("vmux-signer.service", "Result"); result != "success" {
			t.Errorf("stopped with %s", result)
		}

		// Without a home it does not run in circles.
		if err := os.Rename(p.path(".local/share/vmux-signer"), p.path("away")); err != nil {
			t.Fatal(err)
		}
		p.run("systemctl", "--user", "start", "vmux-signer.service")
		eventually(t, "systemd to give up", func() bool { return p.show("vmux-signer.service", "ActiveState") == "failed" })
		if tries := strings.Count(log.output(), "\nerror: "); tries < 1 || tries > 5 {
			t.Errorf("%d tries", tries)
		}
	})
}

// Programs that are where systemd does not look for units are linked to; an agent
// that runs already keeps its socket; and every order of taking things away works.
func TestInstallUserLinks(t *testing.T) {
	t.Parallel()
	h := newHost(t)
	h.sources()
	h.logFile("vmux-agent.service")
	h.manager()
	prefix := "PREFIX=" + h.path("opt")
	do := func(target string) string {
		t.Helper()
		r := h.make(prefix, target)
		if r.exit != 0 {
			t.Fatalf("%s: %v", target, r)
		}
		return r.stdout
	}
	links := func() (names []string) {
		t.Helper()
		for _, pattern := range []string{"*", "*/*"} {
			found, err := filepath.Glob(h.path(".config/systemd/user", pattern))
			if err != nil {
				t.Fatal(err)
			}
			for _, f := range found {
				if info, err := os.Lstat(f); err == nil && info.Mode()&os.ModeSymlink != 0 {
					names = append(names, filepath.Base(f))
				}
			}
		}
		return names
	}
	if r := h.make(prefix, "install-user"); r.exit == 0 || !strings.Contains(r.stderr, "error: vmux is not installed in "+h.path("opt")) {
		t.Errorf("before make install: %v", r)
	}
	do("install")

	other := h.agent()
	if r := h.make(prefix, "install-user"); r.exit == 0 || !strings.Contains(r.stderr, "error: an agent that systemd has not started serves ~/.ssh/vmux-agent.sock\nhint: end it, then make install-user\n") {
		t.Errorf("over another agent: %v", r)
	}
	if r := h.run("ssh-add", "-l"); r.exit != 1 {
		t.Errorf("the other agent: %v", r)
	}
	other.stop(syscall.SIGTERM)

	do("install-user")
	if got, want := links(), []string{"vmux-agent.service", "vmux-agent.socket", "vmux-signer.service", "vmux-agent.socket"}; !slices.Equal(got, want) {
		t.Errorf("links: %q, want %q", got, want)
	}
	if r := h.run("ssh-add", "-l"); r.exit != 1 {
		t.Errorf("the service: %v", r)
	}
	if exe := h.show("vmux-agent.service", "ExecStart"); !strings.Contains(exe, "path="+h.path("opt/bin/vmux-agent")+" ") {
		t.Errorf("runs %s", exe)
	}
	if out := do("install-user"); !strings.Contains(out, "systemctl --user restart vmux-agent\n") {
		t.Errorf("a second time: %s", out)
	}
	do("uninstall-user")
	if got := links(); len(got) != 0 {
		t.Errorf("left: %q", got)
	}
	if r := h.run("ssh-add", "-l"); r.exit != 2 {
		t.Errorf("after uninstall-user: %v", r)
	}

	do("install-user")
	do("uninstall")
	do("uninstall-user")
	do("uninstall-user")
	if got := links(); len(got) != 0 {
		t.Errorf("left when the files went first: %q", got)
	}
	if left := installed(t, h.path("opt")); len(left) != 0 {
		t.Errorf("left: %q", left)
	}
}
