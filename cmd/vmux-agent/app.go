// SPDX-License-Identifier: BSD-3-Clause

package main

import (
	"context"
	"errors"
	"fmt"
	"io"
	"log/slog"
	"net"
	"os"
	"sync"
	"time"

	"vmux.app/toolkit/internal/agent"
	"vmux.app/toolkit/internal/cli"
	"vmux.app/toolkit/internal/control"
	"vmux.app/toolkit/internal/networks"
	"vmux.app/toolkit/internal/oslog"
	"vmux.app/toolkit/internal/phone"
	"vmux.app/toolkit/internal/process"
	"vmux.app/toolkit/internal/session"
	"vmux.app/toolkit/internal/store"
	"vmux.app/toolkit/internal/unixsock"
)

func app() *cli.App {
	return &cli.App{
		Name:  "vmux-agent",
		Usage: "serve the SSH agent protocol with keys that are on a phone",
		Description: "Serves ~/.ssh/vmux-agent.sock in the foreground until SIGINT or SIGTERM, and reads vmux.toml again at SIGHUP.\n" +
			"Point ssh to it:\n" +
			"export SSH_AUTH_SOCK=~/.ssh/vmux-agent.sock",
		Flags:    []cli.Flag{cli.SocketFlag(), cli.ConfigFlag(), cli.LogLevelFlag(), cli.DeadlineFlag()},
		Action:   run,
		Commands: []*cli.Command{policyCommand()},
	}
}

func run(c *cli.Context) error {
	t := cli.From(c)
	if err := process.Harden(); err != nil {
		return fmt.Errorf("this process cannot be protected from others of the same user: %w", err)
	}
	hangups := cli.Hangups(c)
	file, _, err := cli.ConfigPath(c)
	if err != nil {
		return err
	}
	settings, err := newSettings(c.Bool("quiet"), file, func() (store.Config, error) { return cli.LoadConfig(c) })
	if err != nil {
		return err
	}
	config := settings.start
	handler, unified := logHandler(c.App.ErrWriter, &settings.level)
	log := slog.New(handler)

	// The socket first: of two agents the second must not touch anything.
	listeners, err := listen(config.Socket, log)
	if err != nil {
		return err
	}
	defer closeAll(listeners)

	all, closeNetworks := networks.Open(log)
	defer closeNetworks()
	options, err := phone.Prepare(store.Env(os.Getenv), config, "vmux-agent "+cli.Version(), all, log)
	if err != nil {
		return err
	}
	waker := &waker{settings: settings, log: log}
	defer waker.close()
	options.Wake = waker.wake
	phones, err := phone.NewSet(options)
	var damaged *store.DamagedError
	switch {
	case errors.As(err, &damaged):
		t.Error(err)
	case err != nil:
		return err
	}
	defer phones.Close()

	self, err := os.Executable()
	if err != nil {
		log.Warn("own path unknown, so that no command of vmux can ask anything", "reason", err)
	}
	name, err := loginName()
	if err != nil {
		return err
	}
	sessions := session.New(session.Options{Authority: authority{phones}, Log: log,
		MinValidity: config.Certificate.MinValidity, MaxValidity: config.Certificate.MaxValidity})
	defer sessions.Close()
	sweepJobs(log)
	started := time.Now()
	var server *agent.Server
	certs := &certificates{sessions: sessions, phones: phones, config: config, policy: settings.Policy, user: name, log: log,
		locked: func() bool { return server.Locked() }}
	defer certs.jobs.Wait()
	extensions := certs.extensions()
	extensions[control.Status] = func(context.Context, agent.Peer, []byte) (any, error) {
		return control.StatusResult{Version: cli.Version(), PID: os.Getpid(), Started: started.UTC().Truncate(time.Second),
			Locked: server.Locked(), Connections: server.Connections(), Certificates: len(sessions.Current()), Phones: phones.Status(),
			Configuration: settings.status(), Executable: self,
			Device:     control.Device{Name: options.Name, Pin: options.Identity.Pin().String()},
			Protection: protection(), Log: logging(c.App.ErrWriter, unified, settings.level.Level())}, nil
	}
	extensions[control.Reach] = func(ctx context.Context, _ agent.Peer, _ []byte) (any, error) { return phones.Reach(ctx), nil }
	keys := &signer{sessions: sessions, phones: phones}
	server = agent.New(agent.Options{
		Signer:         keys,
		HostNames:      keys.hosts.names,
		Policy:         settings.Policy,
		Log:            log,
		SelfExecutable: self,
		Extensions:     extensions,
		Kind:           cli.Kind,
	})
	for _, l := range listeners {
		log.Info("serving", "socket", l.Addr().String(), "version", cli.Version(), "pid", os.Getpid())
		if t.JSON() {
			t.Result(map[string]any{"event": "serving", "socket": l.Addr().String(), "pid": os.Getpid()}, nil)
		}
	}
	ctx, cancel := context.WithCancel(c.Context)
	var reloads sync.WaitGroup
	reloads.Go(func() {
		for {
			select {
			case <-hangups:
			case <-ctx.Done():
				return
			}
			settings.reload(log)
			if err := certs.reload(); err != nil {
				log.Error("pairings not read again", "reason", err)
			}
		}
	})
	defer reloads.Wait()
	defer cancel()
	return serveAll(ctx, server, listeners)
}

// logHandler is the system's log, unified, where a service manager that keeps no output has started this process, launchd,
// else out.
func logHandler(out io.Writer, level slog.Leveler) (h slog.Handler, unified bool) {
	if h := oslog.New(level); h != nil && os.Getppid() == 1 {
		return h, true
	}
	return slog.NewTextHandler(out, &slog.HandlerOptions{Level: level}), false
}

// listen gives the sockets that the service manager passed, or else our own.
func listen(path string, log *slog.Logger) ([]net.Listener, error) {
	config := unixsock.Config{Log: log}
	passed, err := config.Activated()
	if err != nil || len(passed) > 0 {
		return passed, err
	}
	l, err := config.Listen(path)
	if err != nil {
		return nil, err
	}
	return []net.Listener{l}, nil
}

func closeAll(listeners []net.Listener) {
	for _, l := range listeners {
		l.Close()
	}
}

// serveAll serves every listener until ctx ends or one of them fails.
func serveAll(ctx context.Context, server *agent.Server, listeners []net.Listener) error {
	ctx, cancel := context.WithCancel(ctx)
	defer cancel()
	errs := make([]error, len(listeners))
	var all sync.WaitGroup
	for i, l := range listeners {
		all.Go(func() {
			errs[i] = server.Serve(ctx, l)
			cancel()
		})
	}
	all.Wait()
	return errors.Join(errs...)
}
