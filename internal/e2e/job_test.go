// SPDX-License-Identifier: BSD-3-Clause

package e2e

import (
	"fmt"
	"io"
	"os"
	"os/exec"
	"path/filepath"
	"slices"
	"strconv"
	"strings"
	"sync/atomic"
	"syscall"
	"testing"
	"time"

	"golang.org/x/crypto/ssh"
)

// job is a vmux-cert run that waits to be released.
type job struct {
	*process
	d      *host
	id     int
	pid    int    // of the shell that it runs
	socket string // as the job sees it
}

// jobs numbers the jobs of all tests, for the names of their files.
var jobs atomic.Int64

// job starts a job that waits, and then runs a shell's script.
func (h *host) job(flags []string, script string) *job {
	h.t.Helper()
	j := &job{d: h, id: int(jobs.Add(1))}
	if err := syscall.Mkfifo(h.path(fmt.Sprint("go", j.id)), 0o600); err != nil {
		h.t.Fatal(err)
	}
	file := h.write(fmt.Sprint("job", j.id), fmt.Sprintf("go=%s\necho started $$ \"$SSH_AUTH_SOCK\"\nread -r x <$go\n%s\n", h.path(fmt.Sprint("go", j.id)), script), 0o600)
	j.process = h.spawn("vmux-cert", slices.Concat([]string{"run"}, flags, []string{"--", "sh", file})...)
	m := j.wait(`^started (\d+) (/.*)$`)
	var err error
	if j.pid, err = strconv.Atoi(m[1]); err != nil {
		h.t.Fatal(err)
	}
	j.socket = m[2]
	h.t.Cleanup(func() { // a job whose vmux-cert was killed is nobody else's to end
		select {
		case <-j.done:
		default:
			syscall.Kill(j.pid, syscall.SIGKILL)
		}
	})
	return j
}

// release lets the job go on, also one whose vmux-cert is gone.
func (j *job) release() {
	j.t.Helper()
	f, err := os.OpenFile(j.d.path(fmt.Sprint("go", j.id)), os.O_RDWR, 0)
	if err != nil {
		j.t.Fatal(err)
	}
	j.t.Cleanup(func() { f.Close() }) // the pipe keeps the line while somebody has it open
	if _, err := io.WriteString(f, "go\n"); err != nil {
		j.t.Fatal(err)
	}
}

// gone waits until nothing of the job's socket is left.
func (j *job) gone() {
	j.t.Helper()
	eventually(j.t, "the job's directory to go", func() bool {
		_, err := os.Stat(filepath.Dir(j.socket))
		return os.IsNotExist(err)
	})
}

// dirs are the directories of jobs that there are.
func (h *host) jobDirs() []string {
	h.t.Helper()
	dirs, err := filepath.Glob(h.path("tmp", "vmux-job*"))
	if err != nil {
		h.t.Fatal(err)
	}
	return dirs
}

// A job's statuses: the command's own, and those of env(1).
func TestJobStatus(t *testing.T) {
	t.Parallel()
	d, p := certifying(t)
	d.write("text", "no program", 0o600)
	d.write("broken", "#!/no/such/interpreter\n", 0o700)
	for _, tt := range []struct {
		args   []string
		exit   int
		stdout string
	}{
		{[]string{"--", "sh", "-c", "echo out; exit 0"}, 0, "out\n"},
		{[]string{"sh", "-c", "exit 3"}, 3, ""},
		{[]string{"--reason", "test", "--", "sh", "-c", "exit 255"}, 255, ""},
		{[]string{"--", "sh", "-c", "kill -KILL $$"}, 137, ""},
		{[]string{"--", "sh", "-c", `echo "$0 $1 $2"`, "a b", "--validity", "c"}, 0, "a b --validity c\n"},
		{[]string{"--", "sh", "-c", `echo "${SSH_AUTH_SOCK##*/} $SSH_AGENT_PID"`}, 0, "agent.sock \n"},
		{[]string{"--quiet", "--", "cat"}, 0, "in\n"},
	} {
		before := strings.Count(p.serving.output(), `"outcome":"signed"`)
		if r := d.runInput("in\n", "vmux-cert", append([]string{"run"}, tt.args...)...); r.exit != tt.exit || r.stdout != tt.stdout || strings.Contains(r.stderr, "error: ") {
			t.Errorf("%q: %v", tt.args, r)
		}
		if n := strings.Count(p.serving.output(), `"outcome":"signed"`) - before; n != 1 {
			t.Errorf("%q: %d approvals", tt.args, n)
		}
	}
	asked := strings.Count(p.serving.output(), `"event":"request"`)
	for _, tt := range []struct {
		args []string
		exit int
	}{
		{[]string{"--", "no-such-program"}, 127},
		{[]string{"--", "./no-such-program"}, 127},
		{[]string{"--", "./text"}, 126},
		{[]string{"--validity", "soon", "--", "true"}, 125},
		{[]string{"--host", "nowhere.example", "--", "true"}, 125},
		{[]string{"--socket", d.path("none.sock"), "--", "true"}, 125},
	} {
		r := d.run("vmux-cert", append([]string{"run"}, tt.args...)...)
		if r.exit != tt.exit || !strings.HasPrefix(r.stderr, "error: ") || !strings.Contains(r.stderr, "\nhint: ") || r.stdout != "" {
			t.Errorf("%q: not exit %d: %v", tt.args, tt.exit, r)
		}
	}
	if n := strings.Count(p.serving.output(), `"event":"request"`); n != asked {
		t.Errorf("the phone was asked %d times for what cannot run", n-asked)
	}
	if r := d.run("vmux-cert", "run", "--", "./broken"); r.exit != 126 && r.exit != 127 {
		t.Errorf("a broken program: %v", r)
	}
	eventually(t, "all jobs to be gone", func() bool { return len(d.jobDirs()) == 0 })
	if all := d.certificates(); len(all) != 0 {
		t.Errorf("jobs leave %+v", all)
	}
}

// Signals reach the command, and end the job by its own status or by theirs.
func TestJobSignals(t *testing.T) {
	t.Parallel()
	d, _ := certifying(t)
	for _, tt := range []struct {
		send   syscall.Signal
		script string
		exit   int
	}{
		{syscall.SIGUSR1, `echo got; exit 11`, 11},
		{syscall.SIGHUP, `echo got; exit 12`, 12},
		{syscall.SIGTERM, `echo got; exit 13`, 13},
		{syscall.SIGINT, `echo got; exit 14`, 14},
	} {
		// A shell looks for signals between two commands.
		j := d.job(nil, fmt.Sprintf(`trap '%s' %d; echo ready; while :; do sleep 0.05; done`, tt.script, int(tt.send)))
		j.release()
		j.wait("^ready$")
		j.cmd.Process.Signal(tt.send)
		if exit := j.ended(); exit != tt.exit || !strings.Contains(j.output(), "got") {
			t.Errorf("%v: exit %d\n%s", tt.send, exit, j.output())
		}
		j.gone()
	}
	for _, s := range []syscall.Signal{syscall.SIGTERM, syscall.SIGHUP} {
		j := d.job(nil, "true")
		j.cmd.Process.Signal(s)
		if exit := j.ended(); exit != 128+int(s) {
			t.Errorf("%v: exit %d\n%s", s, exit, j.output())
		}
		j.gone()
	}
	if all := d.certificates(); len(all) != 0 {
		t.Errorf("ended jobs leave %+v", all)
	}
}

// A job's socket is private, serves one certificate, and serves it to the job's
// descendants only.
func TestJobIsAlone(t *testing.T) {
	t.Parallel()
	d, _ := certifying(t)
	need(t, "setsid")
	s := trusting(t, d.ok("vmux-cert", "ca"))
	d.certify("--key-id", "for-all")
	if err := syscall.Mkfifo(d.path("orphan.go"), 0o600); err != nil {
		t.Fatal(err)
	}
	orphan := func(line string) {
		t.Helper()
		f, err := os.OpenFile(d.path("orphan.go"), os.O_RDWR, 0)
		if err != nil {
			t.Fatal(err)
		}
		t.Cleanup(func() { f.Close() })
		if _, err := io.WriteString(f, line); err != nil {
			t.Fatal(err)
		}
	}
	t.Cleanup(func() { orphan("") }) // it ends when there is nothing to read
	login := quoted(append([]string{need(t, "ssh")}, s.args("echo", "in")...))
	// A grandchild, one in another session whose parent waits, a login; and one
	// that leaves the job, and tries when its parent has gone.
	j := d.job([]string{"--key-id", "of-the-job"}, fmt.Sprintf(`
echo grandchild "$(sh -c 'ssh-add -L; true')"
echo session "$(setsid -w sh -c 'ssh-add -L; true' | cut -d' ' -f3)"
echo login "$(%[1]s)"
(setsid sh -c 'read -r x <orphan.go; ssh-add -L >listed 2>&1; echo $? >status; "$@" >login 2>&1; echo $? >>status; mv status left' - %[1]s >/dev/null 2>&1 &)
echo waiting
read -r x <$go
`, login))
	dir, err := os.Stat(filepath.Dir(j.socket))
	if err != nil || dir.Mode().Perm() != 0o700 {
		t.Errorf("the directory: %v %v", dir.Mode(), err)
	}
	sock, err := os.Stat(j.socket)
	if err != nil || sock.Mode().Perm() != 0o600 || sock.Mode().Type() != os.ModeSocket {
		t.Errorf("the socket: %v %v", sock.Mode(), err)
	}
	if filepath.Dir(filepath.Dir(j.socket)) != d.path("tmp") {
		t.Errorf("the socket is %s", j.socket)
	}
	j.release()
	line := strings.TrimPrefix(j.wait("^grandchild ecdsa-sha2-nistp256-cert-v01@openssh.com .* of-the-job$")[0], "grandchild ")
	j.wait("^session of-the-job$")
	j.wait("^login in$")
	if log := s.log(); strings.Count(log, "ID of-the-job (serial") != 1 || strings.Contains(log, "for-all") {
		t.Errorf("the job's login:\n%s", log)
	}
	j.wait("^waiting$")
	if all := strings.Count(j.output(), "-cert-v01"); all != 1 {
		t.Errorf("%d certificates are listed in the job:\n%s", all, j.output())
	}

	// From outside: by the job's socket, and by everybody's.
	certificate := parse(t, line)
	outside := *d
	outside.env = append(slices.Clone(d.env), "SSH_AUTH_SOCK="+j.socket)
	if r := outside.run("ssh-add", "-L"); r.exit != 1 || len(outside.offered()) != 0 {
		t.Errorf("a process outside lists %v", r)
	}
	if ids := keyIDs(d.offered()); !slices.Equal(ids, []string{"for-all"}) {
		t.Errorf("a process outside lists %q", ids)
	}
	if r := s.login(&outside, "true"); r.exit == 0 {
		t.Error("a process outside logged in")
	}
	for _, socket := range []string{j.socket, d.socket()} {
		a := rawAgent(t, socket)
		if _, err := a.Sign(certificate, loginData(session("outside", 0), certificate, nil)); err == nil {
			t.Errorf("signed for a process outside by %s", socket)
		}
		if _, err := a.Sign(certificate.(*ssh.Certificate).Key, loginData(session("outside", 1), certificate, nil)); err == nil {
			t.Errorf("signed for a process outside that names the bare key, by %s", socket)
		}
	}
	d.serving.wait(`outcome=(refused|failed) reason="[^"]*is not part of the job`)
	mine := rawAgent(t, j.socket)
	other := parse(t, d.offered()[0])
	if _, err := mine.Sign(other, loginData(session("other", 0), other, nil)); err == nil {
		t.Error("the job's socket signs with another certificate")
	}

	// One that left.
	orphan("go\n")
	eventually(t, "the process that left the job", func() bool {
		_, err := os.Stat(d.path("left"))
		return err == nil
	})
	status, err := os.ReadFile(d.path("left"))
	if err != nil || string(status) != "1\n255\n" {
		said, _ := os.ReadFile(d.path("login"))
		t.Errorf("the process that left the job: ssh-add and ssh exit %q (%v)\n%s", status, err, said)
	}
	if content, err := os.ReadFile(d.path("listed")); err != nil || strings.Contains(string(content), "-cert-v01") {
		t.Errorf("the process that left the job lists %s (%v)", content, err)
	}
	j.release()
	if exit := j.ended(); exit != 0 {
		t.Errorf("exit %d\n%s", exit, j.output())
	}
	j.gone()
	if ids := keyIDs(d.offered()); !slices.Equal(ids, []string{"for-all"}) {
		t.Errorf("listed afterwards: %q", ids)
	}
}

// However a job ends, its socket, directory and certificate do as well.
func TestJobLeavesNothing(t *testing.T) {
	t.Parallel()
	d, _ := certifying(t)
	const listing = `ssh-add -l; echo status $?`
	short := d.job([]string{"--validity", shortest}, listing)
	all := d.certificates()
	if len(all) != 1 || all[0].Job != short.cmd.Process.Pid {
		t.Fatalf("the job %d has %+v", short.cmd.Process.Pid, all)
	}
	end := all[0].ValidBefore

	killed := d.job(nil, listing)
	dropped := d.job(nil, listing)
	all = d.certificates()
	if len(all) != 3 || len(d.jobDirs()) != 3 {
		t.Fatalf("three jobs have %+v, %q", all, d.jobDirs())
	}
	if r := d.run("vmux-cert", "check"); r.exit != 2 { // for nobody but the jobs
		t.Errorf("check: %v", r)
	}
	killed.cmd.Process.Kill()
	at := time.Now()
	killed.gone()
	if took := time.Since(at); took > 5*time.Second {
		t.Errorf("the job's directory is there %v after vmux-cert was killed", took)
	}
	has := func(j *job) bool {
		return slices.ContainsFunc(d.certificates(), func(i issued) bool { return i.Job == j.cmd.Process.Pid })
	}
	if has(killed) {
		t.Error("the certificate of a job is there after vmux-cert was killed")
	}
	for _, i := range all {
		if i.Job == dropped.cmd.Process.Pid {
			d.ok("vmux-cert", "drop", i.Serial)
		}
	}
	dropped.gone()
	for _, j := range []*job{killed, dropped} {
		j.release()
		j.wait("^status 2$") // nobody is there
		j.ended()
	}

	// Its time is over: seen within a second of its end, and the files go with the
	// next look.
	var last time.Time
	eventually(t, "the job's directory to go", func() bool {
		now := time.Now()
		if _, err := os.Stat(filepath.Dir(short.socket)); err != nil {
			return true
		}
		last = now
		return false
	})
	if last.After(end.Add(2 * time.Second)) {
		t.Errorf("the job's directory is there %v after its certificate's end", last.Sub(end))
	}
	if has(short) {
		t.Error("the certificate of a job is there after its end")
	}
	short.release()
	short.wait("^status 2$")
	if exit := short.ended(); exit != 0 {
		t.Errorf("a job that outlives its certificate: exit %d", exit)
	}

	// The agent is killed: its next start cleans up, but for what another agent
	// serves.
	orphan := d.job(nil, listing)
	other := *d
	other.spawn("vmux-agent", "--socket", d.path("other.sock")).wait(`msg=serving`)
	living := d.job([]string{"--socket", d.path("other.sock")}, listing)
	d.serving.stop(syscall.SIGKILL)
	for _, j := range []*job{orphan, living} {
		if _, err := os.Stat(j.socket); err != nil {
			t.Errorf("a killed agent leaves no socket: %v", err)
		}
	}
	d.agent()
	orphan.gone()
	orphan.release()
	orphan.wait("^status 2$")
	if exit := orphan.ended(); exit != 0 {
		t.Errorf("a job that outlives its agent: exit %d", exit)
	}
	living.release()
	living.wait("^status 0$")
	living.ended()
	living.gone()
	if dirs := d.jobDirs(); len(dirs) != 0 {
		t.Errorf("left: %q", dirs)
	}
	if all := d.certificates(); len(all) != 0 {
		t.Errorf("left: %+v", all)
	}
}

// resident is how much memory a process has, in KiB.
func resident(t testing.TB, p *process) int {
	t.Helper()
	out, err := exec.Command(need(t, "ps"), "-o", "rss=", "-p", strconv.Itoa(p.cmd.Process.Pid)).Output()
	if err != nil {
		t.Fatal(err)
	}
	n, err := strconv.Atoi(strings.TrimSpace(string(out)))
	if err != nil {
		t.Fatal(err)
	}
	return n
}

// Ten thousand signatures leave the agent's memory where it was.
func TestTenThousandSignatures(t *testing.T) {
	t.Parallel()
	p, d := certifier(t), certDevice(t)
	p.serve("--approve", "always")
	pair(t, d, p)
	d.serving = d.spawn("vmux-agent", "--json", "--log-level", "error") // no line for each signature
	d.serving.wait(`"event":"serving"`)
	d.certify()
	certificate := parse(t, d.offered()[0])
	p.serving.stop(syscall.SIGTERM)
	a := rawAgent(t, d.socket())
	sign := func(n int) {
		t.Helper()
		for i := range n {
			data := loginData(session("memory", i), certificate, nil)
			sig, err := a.Sign(certificate, data)
			if err != nil {
				t.Fatalf("signature %d: %v", i, err)
			}
			if i%1000 == 0 && certificate.(*ssh.Certificate).Key.Verify(data, sig) != nil {
				t.Fatalf("signature %d is none", i)
			}
		}
	}
	// Go's collector takes memory for a while until it has what it likes; a leak
	// goes on.
	sign(1000)
	for round := 1; ; round++ {
		before := resident(t, d.serving)
		sign(10000)
		after := resident(t, d.serving)
		t.Logf("%d KiB before, %d KiB after", before, after)
		if after-before <= mostGrowth {
			return
		}
		if round == 3 {
			t.Fatalf("the agent grew from %d to %d KiB", before, after)
		}
	}
}

// mostGrowth is 200 bytes for each of ten thousand signatures, in KiB: less than
// a request has.
const mostGrowth = 2048
