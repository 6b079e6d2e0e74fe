// SPDX-License-Identifier: BSD-3-Clause

package cli

import (
	"context"
	"errors"
	"fmt"
	"io/fs"
	"os"
	"path/filepath"
	"strings"
	"syscall"

	"vmux.app/toolkit/internal/agent"
	"vmux.app/toolkit/internal/audit"
	"vmux.app/toolkit/internal/keyfile"
	"vmux.app/toolkit/internal/knownhosts"
	"vmux.app/toolkit/internal/networks"
	"vmux.app/toolkit/internal/pairing"
	"vmux.app/toolkit/internal/phone"
	"vmux.app/toolkit/internal/session"
	"vmux.app/toolkit/internal/signer"
	"vmux.app/toolkit/internal/store"
	"vmux.app/toolkit/internal/tpm"
	"vmux.app/toolkit/internal/transport"
	"vmux.app/toolkit/internal/unixsock"
	"vmux.app/toolkit/internal/wake/apns"
)

// Exit statuses of every command. Scripts rely on them.
const (
	ExitOK          = 0
	ExitFailed      = 1
	ExitUsage       = 2 // wrong usage or configuration
	ExitNoAgent     = 3 // the agent is not running
	ExitUnreachable = 4 // the phone cannot be reached
	ExitDenied      = 5 // denied on the phone
	ExitNoAnswer    = 6 // no answer in time
	ExitNotPaired   = 7

	exitSignal = 128 // and the signal's number, as shells have it
)

// Status is an error that ends the command with this status and prints nothing, for commands whose status
// is a result.
type Status int

func (s Status) Error() string { return fmt.Sprintf("status %d", int(s)) }

// aside is what to type to set the state at path aside.
func aside(path, suffix string) string {
	if domain, ok := store.UserDefaults(path); ok {
		return "defaults rename " + quote(domain) + " state state" + suffix
	}
	return "mv " + quote(path) + " " + quote(path+suffix)
}

// Fail returns err with a status and a hint that hold whatever the table says.
func Fail(exit int, hint string, err error) error { return &failure{exit, hint, err} }

type failure struct {
	exit int
	hint string
	err  error
}

func (f *failure) Error() string { return f.err.Error() }
func (f *failure) Unwrap() error { return f.err }

// Together is the error of several, of which there is at least one, in one line.
func Together(errs []error) error { return together(errs) }

type together []error

func (t together) Unwrap() []error { return t }
func (t together) Error() string {
	var b strings.Builder
	for i, err := range t {
		if i > 0 {
			b.WriteString("; ")
		}
		b.WriteString(err.Error())
	}
	return b.String()
}

// A row of the table turns the errors it matches into a status and a hint.
type row struct {
	exit int
	hint func(err error) (hint string, ok bool) // not ok: the row does not match
}

// is matches a sentinel.
func is(target error, exit int, hint string) row {
	return row{exit, func(err error) (string, bool) { return hint, errors.Is(err, target) }}
}

// as matches a type.
func as[E error](exit int, hint func(E) string) row {
	return row{exit, func(err error) (string, bool) {
		e, ok := errors.AsType[E](err)
		if !ok {
			return "", false
		}
		return hint(e), true
	}}
}

// advice is the table: one group for each package, the more special error before the more general one.
func advice() []row {
	return append(doctorAdvice(), []row{
		// signer's own of store and keyfile
		is(signer.ErrLinkKey, ExitFailed, "restore link-key.pem from a backup, or move it away; every device has to pair again then: vmux-signer pair"),
		is(signer.ErrAuthority, ExitFailed, "restore the file ca from a backup; without one, revoke what it signed and begin anew: vmux-signer erase, vmux-signer init"),

		// store
		is(store.ErrNoHome, ExitUsage, "set HOME to your home directory, as in HOME=/home/me"),
		is(store.ErrBusy, ExitFailed, "look for a stopped vmux command (ps -u $USER | grep vmux), end it and try again"),
		as(ExitUsage, func(e *store.ConfigError) string {
			switch {
			case e.Want != "":
				return "write " + e.Want
			case e.Line > 0:
				return fmt.Sprintf("mend line %d of %s; vmux.toml(5) has the form", e.Line, e.File)
			case e.Err != nil:
				return "check the path and the permissions, or leave it out for the defaults: ls -l " + quote(e.File)
			}
			return "see vmux.toml(5)"
		}),
		as(ExitFailed, func(e *store.ModeError) string {
			if e.Owner >= 0 {
				return "run the command as the owner, or: sudo chown \"$(id -u)\" " + quote(e.Path)
			}
			if e.Dir {
				return "look whether its files are yours, then: chmod 700 " + quote(e.Path)
			}
			return "look whether it is as you left it, then: chmod 600 " + quote(e.Path)
		}),
		as(ExitFailed, func(e *store.KeyError) string {
			if errors.Is(e, fs.ErrNotExist) {
				return "restore it, or start the agent again, which makes one, and pair again: vmux-pair"
			}
			return fmt.Sprintf("restore it, or set it aside and pair again: mv %s %s && vmux-pair", quote(e.Path), quote(e.Path+".old"))
		}),
		as(ExitFailed, func(e *store.DamagedError) string {
			if e.SetAside != "" {
				return "pair again: vmux-pair"
			}
			return "set it aside and pair again: " + aside(e.Path, ".old") + " && vmux-pair"
		}),
		as(ExitFailed, func(e *store.NewerError) string {
			return "update these commands, or set it aside and pair again: " + aside(e.Path, ".newer") + " && vmux-pair"
		}),
		as(ExitFailed, func(e *store.UnwritableError) string {
			if domain, ok := store.UserDefaults(e.Path); ok {
				return "see whether they can be read, and there is room: defaults read " + quote(domain) + "; df ~"
			}
			if errors.Is(e, syscall.ENOSPC) || errors.Is(e, syscall.EDQUOT) {
				return "make room: df " + quote(filepath.Dir(e.Path))
			}
			if errors.Is(e, syscall.EROFS) {
				return "it is on a file system that is read-only; see which one: df " + quote(filepath.Dir(e.Path))
			}
			return "make the directory yours and writable: ls -ld " + quote(filepath.Dir(e.Path))
		}),
		as(ExitFailed, func(*store.InvalidError) string {
			return "forget phones that are not used any more: vmux-pair --forget NAME"
		}),

		// unixsock
		as(ExitFailed, func(e *unixsock.InUseError) string {
			if e.PID > 0 {
				return fmt.Sprintf("use the agent that serves it, or end that one first: kill %d", e.PID)
			}
			return "use the agent that serves it, or choose another path: --socket PATH"
		}),
		as(ExitUsage, func(*unixsock.PathTooLongError) string {
			return "choose a shorter path, as in --socket ~/.ssh/vmux-agent.sock"
		}),
		as(ExitFailed, func(e *unixsock.DirError) string {
			if e.Mode.IsDir() && int(e.Owner) == os.Geteuid() && e.Mode&fs.ModeSticky == 0 && inHome(e.Path) {
				return "look whether its files are yours, then: chmod 700 " + quote(e.Path)
			}
			return "choose a path in a directory of your own, as in --socket ~/.ssh/vmux-agent.sock"
		}),
		as(ExitFailed, func(e *unixsock.ObstacleError) string {
			return fmt.Sprintf("look at it, then move it away: mv %s %s", quote(e.Path), quote(e.Path+".old"))
		}),
		is(unixsock.ErrActivation, ExitUsage, "let the socket unit have one ListenStream= and Accept=no, or start vmux-agent without it"),

		// agent
		is(agent.ErrNotRunning, ExitNoAgent, "start it in another terminal: vmux-agent"),
		is(agent.ErrNotServed, ExitNoAgent, "name the socket of a vmux-agent on this computer: --socket PATH"),

		// knownhosts
		as(ExitUsage, func(*knownhosts.UnknownError) string {
			return "connect to it once with ssh, give the HostName:PORT that ssh -G NAME shows, or a fingerprint: --host SHA256:..."
		}),
		as(ExitUsage, func(*knownhosts.FingerprintError) string { return "see the fingerprint: ssh-keygen -l -F HOST" }),

		// pairing
		is(pairing.ErrBadURL, ExitUsage, "give the whole URL that vmux-pair --url prints, in single quotes"),
		is(pairing.ErrNoWindow, ExitFailed, "open Pair on the phone (vmux-signer pair), then: vmux-pair"),
		is(pairing.ErrDeclined, ExitDenied, "accept on the phone, when it shows this device's name and number: vmux-pair"),
		is(pairing.ErrWrongCode, ExitFailed, "begin anew with a new number, on both sides: vmux-pair"),
		is(pairing.ErrMethod, ExitFailed, "use the URL on both sides or on neither: vmux-pair --url, and vmux-signer pair URL"),
		is(pairing.ErrStopped, ExitFailed, "begin anew, on both sides: vmux-pair"),
		is(pairing.ErrHungUp, ExitFailed, "try again; if it stays so, pair by URL: vmux-pair --url"),
		is(pairing.ErrStalled, ExitNoAnswer, "begin anew, on both sides: vmux-pair"),
		is(pairing.ErrProof, ExitFailed, "begin anew; if it happens again, somebody is in between: use vmux-pair --qr"),

		// phone, the special cases first: ErrUnreachable and ErrFailed are wrapped around others
		is(phone.ErrNotPaired, ExitNotPaired, "pair one: vmux-pair"),
		is(phone.ErrForgotten, ExitNotPaired, "pair again: vmux-pair"),
		is(transport.ErrNotAllowed, ExitUnreachable, localNetwork),
		is(phone.ErrNoPhone, ExitUnreachable, "open Pair on a phone in this network (vmux-signer pair), or name its address: vmux-pair --address HOST:PORT"),
		is(phone.ErrNotOpened, ExitNoAnswer, "open Pair on the phone (vmux-signer pair), then: vmux-pair"),
		is(phone.ErrURLNotTaken, ExitNoAnswer, "give the URL to the phone while this waits (vmux-signer pair -); a new one: vmux-pair --url"),
		is(phone.ErrSeveral, ExitUsage, "name the one you mean: vmux-pair --phone NAME"),
		is(phone.ErrDenied, ExitDenied, "accept on the phone and try again, if it was you"),
		is(phone.ErrTimeout, ExitNoAnswer, "look at the phone, then try again"),
		is(phone.ErrExpired, ExitFailed, clocks),
		is(phone.ErrLocked, ExitDenied, "unlock the phone (vmux-signer unlock), then try again"),
		is(phone.ErrUnknownKey, ExitFailed, "see what the phone holds: ssh-add -l"),
		is(phone.ErrTooMany, ExitFailed, "answer what waits on the phone, then try again"),
		is(phone.ErrLost, ExitUnreachable, "bring the phone back into this network, then try again"),
		is(phone.ErrUnreachable, ExitUnreachable, "wake the phone and look that both are in the same network, or pair again with its address: vmux-pair --address HOST:PORT"),
		is(phone.ErrFailed, ExitFailed, "look at the phone's log; vmux-signer writes it to standard error"),

		is(phone.ErrNoCA, ExitFailed, "pair again with a phone that has one: vmux-pair"),
		is(phone.ErrWhichPhone, ExitUsage, "name an identity of the one you mean: vmux-cert --identity LABEL"),
		is(phone.ErrNoIdentity, ExitUsage, "see the identities: vmux-pair --list"),

		// session
		is(errMismatch, ExitFailed, "do not trust the phone before you know why; its log has the request"),
		is(errRequest, ExitUsage, "see the limits: man vmux-cert, man vmux.toml"),
		is(session.ErrTooMany, ExitFailed, "end some: vmux-cert list, then vmux-cert drop SERIAL"),

		// transport
		is(transport.ErrWrongPeer, ExitUnreachable, "check the address; a phone that was set up anew must be paired again: vmux-pair"),
		is(transport.ErrRefused, ExitNotPaired, "pair again: vmux-pair"),
		is(transport.ErrNobody, ExitUnreachable, "wake the phone and look that both are in the same network"),

		// wake
		as(ExitUsage, keyHint),
		as(ExitUsage, func(e *apns.OptionError) string { return "give " + e.Want }),
		is(apns.ErrNoToken, ExitNotPaired, "let the phone connect once, so that it sends its token, or give one: --device-token TOKEN"),
		as(ExitFailed, func(e *apns.RefusedError) string { return e.Reason.Do }),
		as(ExitUnreachable, func(e *apns.ConnectError) string {
			switch e.Problem {
			case apns.BadCertificate:
				return "name who certifies it: --ca-file FILE; were it Apple's host, somebody is in between"
			case apns.NoHTTP2:
				return "look at what is there, and name a push service: --endpoint https://HOST:PORT"
			}
			return "see whether it is reached from here: curl -v https://" + e.Host + "; HTTPS_PROXY names a proxy"
		}),

		// audit, the special cases first: ErrNotRecorded is wrapped around the others
		as(ExitFailed, func(*audit.BrokenError) string {
			return "compare the files with a backup; to begin another log, end vmux-signer and move audit*.jsonl out of its home"
		}),
		is(audit.ErrHead, ExitFailed, "look whether you noted all of it, and compare the log with a backup"),
		is(audit.ErrBusy, ExitFailed, "look for a stopped vmux-signer (ps -u $USER | grep vmux), end it and try again"),
		as(ExitFailed, func(e *audit.RefusedError) string {
			switch {
			case e.Kind():
				return fmt.Sprintf("look at it, then move it away: mv %s %s", quote(e.Path), quote(e.Path+".old"))
			case int(e.UID) != os.Geteuid():
				return "run the command as the owner, or: sudo chown \"$(id -u)\" " + quote(e.Path)
			}
			return fmt.Sprintf("look whether it is as you left it, then: chmod %o %s", e.Want, quote(e.Path))
		}),
		is(audit.ErrNotRecorded, ExitFailed, "make room for audit.jsonl in the signer's home, and the home writable for you; see: df, ls -ld"),

		// signer
		is(signer.ErrNotHome, ExitFailed, "make one: vmux-signer init"),
		is(signer.ErrHomeExists, ExitFailed, "use it, or name another one: VMUX_SIGNER_HOME=DIR vmux-signer init"),
		is(signer.ErrNoPlace, ExitFailed, "name a directory of yours that does not exist yet: VMUX_SIGNER_HOME=DIR vmux-signer init"),
		is(signer.ErrDirNotEmpty, ExitFailed, "name a directory that is empty or does not exist: VMUX_SIGNER_HOME=DIR vmux-signer init"),
		is(signer.ErrHomeBusy, ExitFailed, "try again when it is done, such as vmux-signer passphrase with many keys; else look for a stopped vmux-signer (ps -u $USER | grep vmux), end it and try again"),
		as(ExitFailed, func(*signer.EraseError) string {
			return "see what keeps these (ls -ld, lsattr, mount), then finish it: vmux-signer erase"
		}),
		is(signer.ErrErasing, ExitFailed, "finish it: vmux-signer erase"),
		is(signer.ErrManyRemoved, ExitFailed, "keep what vmux-signer revoke prints somewhere else, then remove that file"),
		is(signer.ErrServing, ExitFailed, "use the one that runs, or end it first"),
		is(signer.ErrStateVersion, ExitFailed, "update vmux-signer"),
		is(signer.ErrNotRunning, ExitFailed, "start it in another terminal: vmux-signer serve"),
		is(signer.ErrSilent, ExitNoAnswer, "look whether it was stopped, as by Ctrl-Z; if not, end it and start it again"),
		is(signer.ErrName, ExitUsage, "choose another one, as in --name Pocket"),
		is(signer.ErrLabel, ExitUsage, "choose another one, as in: vmux-signer key add work"),
		is(keyfile.ErrType, ExitUsage, "write --type ecdsa or --type ed25519"),
		is(signer.ErrKeyExists, ExitFailed, "choose another label, or remove that key first; see: vmux-signer key list"),
		is(signer.ErrNoKey, ExitFailed, "see what there is: vmux-signer key list"),
		is(signer.ErrManyKeys, ExitFailed, "remove one that is not used: vmux-signer key remove LABEL"),
		is(signer.ErrPassphrase, ExitFailed, "try again; a passphrase that is forgotten cannot be found out: vmux-signer erase, and begin anew"),
		is(signer.ErrProtected, ExitUsage, "run it in a terminal, or name a file that has it: --passphrase-file FILE"),
		as(ExitFailed, func(e *signer.ForeignKeyError) string {
			if e.InTPM {
				return "restore its file of now, or remove it: vmux-signer key remove " + quote(e.Label)
			}
			return "give it the passphrase of the others first: ssh-keygen -p -f " + quote(e.Path)
		}),
		is(keyfile.ErrTooLong, ExitUsage, "choose a shorter one"),
		is(signer.ErrNotProtected, ExitFailed, "give the keys one: vmux-signer passphrase"),
		is(signer.ErrDenied, ExitDenied, "answer the question to go on"),
		is(signer.ErrLocked, ExitFailed, "give the passphrase: vmux-signer unlock"),
		is(keyfile.ErrBare, ExitUsage, "leave out --no-passphrase or --none; a home whose keys have none is given one by: vmux-signer passphrase"),
		is(tpm.ErrNoTPM, ExitFailed, "see what there is: ls -l /dev/tpmrm0; it takes the group tss (sudo usermod -aG tss $USER), and another one is named by VMUX_TPM"),
		is(tpm.ErrLockout, ExitFailed, "wait for as long as it says with the TPM running, or: tpm2_dictionarylockout --clear-lockout"),
		is(tpm.ErrOwner, ExitFailed, "if it has a password, its owner can take that away: tpm2_changeauth -c owner -p PASSWORD; if it is disabled, enable it in the firmware's setup"),
		is(tpm.ErrOtherTPM, ExitFailed, "use the TPM that made it; one that was cleared cannot use it again: make new keys"),
		is(tpm.ErrTPM, ExitFailed, "try again; then see what the kernel says: sudo dmesg | grep -i tpm"),
		is(keyfile.ErrDamaged, ExitFailed, "restore the file from a backup, or move it out of the signer's home"),
		is(signer.ErrNoHost, ExitFailed, "see what there is: vmux-signer hosts"),
		is(signer.ErrNoDevice, ExitFailed, "see what there is: vmux-signer devices"),
		is(signer.ErrManyDevices, ExitFailed, "forget one that is not used: vmux-signer forget DEVICE"),
		is(signer.ErrWindowOpen, ExitFailed, "end the other vmux-signer pair, or wait until its window closes"),
		is(signer.ErrURLExpired, ExitNoAnswer, "make a new URL on the device, and give it here while that waits: vmux-pair --url"),
		is(signer.ErrURLUsed, ExitFailed, "make a new one on the device: vmux-pair --url"),
		is(signer.ErrWindowExpired, ExitNoAnswer, "try again, with vmux-pair running on the device: vmux-signer pair"),
		is(signer.ErrWindowTime, ExitUsage, "write --timeout 2m"),
		is(signer.ErrNoTerminal, ExitUsage, "run it in a terminal; to pair without one, use a URL: vmux-pair --url"),
		is(signer.ErrNoAskpass, ExitUsage, "name one, as in SSH_ASKPASS=/usr/bin/ssh-askpass"),
		is(signer.ErrNoCommand, ExitUsage, "name one, as in --approve 'command:fprintd-verify -f right-index-finger'"),
		is(signer.ErrControl, ExitFailed, "look at what the running vmux-signer logs"),
		as(ExitFailed, func(e *signer.PermissionError) string {
			if int(e.UID) != os.Geteuid() {
				return "run the command as the owner, or: sudo chown \"$(id -u)\" " + quote(e.Path)
			}
			return fmt.Sprintf("chmod %o %s", e.Want, quote(e.Path))
		}),
		as(ExitFailed, func(e *signer.ListenError) string {
			switch {
			case errors.Is(e, syscall.EADDRINUSE):
				return "choose another port, or let the system choose: --listen :0"
			case errors.Is(e, syscall.EACCES):
				return "choose a port above 1023: --listen :0"
			}
			return "choose an address of this computer: --listen HOST:PORT"
		}),

		// cli
		is(networks.ErrNearby, ExitUsage, "leave --nearby out; devices find the signer on the local network"),
		is(ErrNoTerminal, ExitUsage, "run it in a terminal, or give the answer on the command line; see --help"),
		is(ErrNoInput, ExitFailed, "type the answer and press Enter"),

		// last, since others wrap it
		is(context.DeadlineExceeded, ExitNoAnswer, "look at the phone, then try again"),
	}...)
}

// keyHint is about the push key.
func keyHint(e *apns.KeyError) string {
	switch e.Problem {
	case apns.KeyMissing:
		return "move the key there that Apple gave you, and close it: chmod 600 " + quote(e.Path) + "; or name it: --key FILE"
	case apns.KeyUnreadable:
		return "look at its permissions: ls -l " + quote(e.Path)
	case apns.KeyForeign:
		return "run the command as the owner, or: sudo chown \"$(id -u)\" " + quote(e.Path)
	case apns.KeyOpen:
		return "chmod 600 " + quote(e.Path) + "; if somebody may have read it, revoke it on developer.apple.com, under Keys"
	case apns.KeyEncrypted, apns.KeySEC1, apns.KeySeveral:
		return fmt.Sprintf("(umask 077 && openssl pkey -in %[1]s -out %[2]s) && mv %[2]s %[1]s", quote(e.Path), quote(e.Path+".new"))
	case apns.KeyAlgorithm:
		return "make one for the Apple Push Notifications service on developer.apple.com, under Keys, and name it: --key FILE"
	}
	return "name the file as Apple gave it, AuthKey_ID.p8: --key FILE"
}

// inHome says whether a directory is below the user's home, where its mode is the user's business alone.
func inHome(path string) bool {
	rel, err := filepath.Rel(os.Getenv("HOME"), path)
	return err == nil && rel != ".." && !strings.HasPrefix(rel, "../")
}

// kinds names errors on the agent's socket, where only text goes along with them.
var kinds = []struct {
	name string
	err  error
}{
	{"not-paired", phone.ErrNotPaired}, {"forgotten", phone.ErrForgotten}, {"denied", phone.ErrDenied},
	{"timeout", phone.ErrTimeout}, {"expired", phone.ErrExpired}, {"locked", phone.ErrLocked},
	{"unknown-key", phone.ErrUnknownKey}, {"too-many", phone.ErrTooMany}, {"lost", phone.ErrLost},
	{"unreachable", phone.ErrUnreachable}, {"no-ca", phone.ErrNoCA}, {"which-phone", phone.ErrWhichPhone},
	{"no-identity", phone.ErrNoIdentity}, {"failed", phone.ErrFailed},
	{"mismatch", errMismatch}, {"request", errRequest}, {"certificates", session.ErrTooMany},
}

// Stand-ins for types of errors.
var (
	errMismatch = errors.New("not the certificate that was asked for")
	errRequest  = errors.New("not a request for a certificate")
)

// Kind names the kind of an error for agent.Options.
func Kind(err error) string {
	if _, ok := errors.AsType[*session.MismatchError](err); ok {
		err = errMismatch
	}
	if _, ok := errors.AsType[*session.SpecError](err); ok {
		err = errRequest
	}
	for _, k := range kinds {
		if errors.Is(err, k.err) {
			return k.name
		}
	}
	return ""
}

// Advice returns the exit status and the hint that belong to an error. For an error that no row matches the hint
// is empty.
func Advice(err error) (exit int, hint string) {
	if f, ok := errors.AsType[*failure](err); ok {
		return f.exit, f.hint
	}
	if s, ok := errors.AsType[*signalError](err); ok {
		return exitSignal + int(s.sig), "nothing is left waiting on the phone; run it again when you like"
	}
	if u, ok := errors.AsType[*UsageError](err); ok {
		return ExitUsage, u.Hint
	}
	if a, ok := errors.AsType[*agent.AnswerError](err); ok {
		for _, k := range kinds {
			if a.Kind == k.name {
				err = k.err
			}
		}
	}
	for _, r := range advice() {
		if hint, ok := r.hint(err); ok {
			return r.exit, hint
		}
	}
	return ExitFailed, ""
}
