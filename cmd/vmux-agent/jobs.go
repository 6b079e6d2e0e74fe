// SPDX-License-Identifier: BSD-3-Clause

package main

import (
	"context"
	"errors"
	"fmt"
	"log/slog"
	"os"
	"path/filepath"
	"slices"
	"time"

	"golang.org/x/crypto/ssh"

	"vmux.app/toolkit/internal/agent"
	"vmux.app/toolkit/internal/control"
	"vmux.app/toolkit/internal/session"
	"vmux.app/toolkit/internal/unixsock"
)

const (
	jobSocket = "agent.sock"
	// jobRecheck is how often a job's socket looks whether its certificate still
	// is.
	jobRecheck = 500 * time.Millisecond
)

// jobDirs names the directories of this user's jobs. They are in a place for
// sockets, since a path below the home may be too long for one.
func jobDirs() (parent, prefix string) {
	if parent = os.Getenv("XDG_RUNTIME_DIR"); !filepath.IsAbs(parent) {
		parent = os.TempDir()
	}
	return parent, fmt.Sprintf("vmux-job-%d-", os.Geteuid())
}

// run makes a certificate for the process that asks and its descendants, and a
// socket that serves them this certificate only. Both end with the connection,
// and the socket ends with the certificate.
func (c *certificates) run(ctx context.Context, peer agent.Peer, params []byte) (any, error) {
	var p control.CertificateParams
	if err := c.read(params, &p); err != nil {
		return nil, err
	}
	chain, err := peer.Chain()
	if err != nil {
		return nil, fmt.Errorf("the job's process is unknown: %w", err)
	}
	s := c.spec(p)
	s.Scope.Root = chain[0]
	info, err := c.sessions.Request(context.WithValue(ctx, askerKey{}, peer), s)
	if err != nil {
		return nil, err
	}
	certs := c.sessions.Current()
	i := slices.IndexFunc(certs, func(k *session.Certificate) bool { return k.Info().Key == info.Key })
	if i < 0 {
		return nil, session.ErrDropped
	}
	j := &job{certificates: c, certificate: certs[i]}
	if err := j.start(ctx); err != nil {
		c.sessions.Drop(info.Serial)
		return nil, err
	}
	return control.RunResult{Socket: filepath.Join(j.dir, jobSocket), Info: info}, nil
}

// job is a socket for one certificate.
type job struct {
	*certificates
	certificate *session.Certificate
	dir         string
	keys        []agent.Key
}

func (j *job) start(ctx context.Context) error {
	parent, prefix := jobDirs()
	dir, err := os.MkdirTemp(parent, prefix)
	if err != nil {
		return fmt.Errorf("directory for the job's socket: %w", err)
	}
	l, err := unixsock.Listen(filepath.Join(dir, jobSocket))
	if err != nil {
		os.RemoveAll(dir)
		return err
	}
	j.dir = dir
	j.keys = []agent.Key{{Public: j.certificate.Public(), Comment: j.certificate.Info().KeyID, Local: true}}
	server := agent.New(agent.Options{Signer: j, Policy: j.policy, HostNames: j.hosts.names, Log: j.log})
	ctx, cancel := context.WithCancel(ctx)
	serial := j.certificate.Info().Serial
	j.jobs.Go(func() {
		defer cancel()
		if err := server.Serve(ctx, l); err != nil {
			j.log.Error("job's socket", "reason", err)
		}
		j.sessions.Drop(serial)
		if err := os.RemoveAll(dir); err != nil {
			j.log.Error("job's socket is left", "reason", err)
		}
		j.log.Info("job ended", "serial", serial)
	})
	j.jobs.Go(func() {
		defer cancel()
		t := time.NewTicker(jobRecheck)
		defer t.Stop()
		for slices.Contains(j.sessions.Current(), j.certificate) {
			select {
			case <-t.C:
			case <-ctx.Done():
				return
			}
		}
	})
	j.log.Info("job started", "serial", serial, "pid", j.certificate.Info().Job)
	return nil
}

// Keys implements agent.Signer: the job's certificate, for the job's processes.
func (j *job) Keys(l *agent.Lister) []agent.Key {
	certs := j.sessions.Current()
	if l != nil {
		certs = j.sessions.For(lister(l))
	}
	if j.locked() || !slices.Contains(certs, j.certificate) {
		return nil
	}
	return j.keys
}

// Sign implements agent.Signer.
func (j *job) Sign(_ context.Context, r agent.Request) (*ssh.Signature, error) {
	if j.locked() {
		return nil, errLocked
	}
	return signLocal([]*session.Certificate{j.certificate}, r)
}

// sweepJobs removes what the jobs of an agent left that was killed.
func sweepJobs(log *slog.Logger) {
	parent, prefix := jobDirs()
	dirs, err := filepath.Glob(filepath.Join(parent, prefix+"*"))
	if err != nil {
		return // the pattern is ours
	}
	for _, dir := range dirs {
		l, err := unixsock.Listen(filepath.Join(dir, jobSocket))
		if err != nil {
			if !errors.Is(err, unixsock.ErrInUse) {
				log.Warn("directory of an old job is left", "path", dir, "reason", err)
			}
			continue
		}
		l.Close()
		if err := os.RemoveAll(dir); err != nil {
			log.Warn("directory of an old job is left", "path", dir, "reason", err)
		}
	}
}
