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
	"vmux.app/toolkit/internal/envelope"
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

// run also sees to who waits at a socket of launchd's, and to the log, when the agent cannot start or go on.
func run(c *cli.Context) error {
	level := new(slog.LevelVar)
	handler, unified := logHandler(c.App.ErrWriter, level)
	log := slog.New(handler)
	passed, err := unixsock.Config{Log: log}.Activated()
	defer closeAll(passed)
	if err == nil {
		err = serve(c, passed, log, level, unified)
	}
	if err != nil && (unified || unixsock.ClientsStay && len(passed) > 0) {
		_, hint := cli.Advice(err)
		log.Error("not serving", "reason", err, "hint", hint) // launchd keeps standard error for nobody
		turnAway(c.Context, passed)
	}
	return err
}

// serve serves the sockets that were passed, or else its own.
func serve(c *cli.Context, passed []net.Listener, log *slog.Logger, level *slog.LevelVar, unified bool) error {
	t := cli.From(c)
	if err := process.Harden(); err != nil {
		return fmt.Errorf("this process cannot be protected from others of the same user: %w", err)
	}
	hangups := cli.Hangups(c)
	file, _, err := cli.ConfigPath(c)
	if err != nil {
		return err
	}
	settings, err := newSettings(c.Bool("quiet"), file, level, func() (store.Config, error) { return cli.LoadConfig(c) })
	if err != nil {
		return err
	}
	config := settings.start

	// The socket first: of two agents the second must not touch anything.
	listeners := passed
	if len(listeners) == 0 {
		l, err := unixsock.Config{Log: log}.Listen(config.Socket)
		if err != nil {
			return err
		}
		listeners = append(listeners, l)
		defer closeAll(listeners)
	}

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
		if unified {
			log.Error("state set aside", "reason", err)
		}
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
		MinValidity: config.Certificate.MinValidity, MaxValidity: config.Certificate.MaxValidity, MaxPrincipals: envelope.MaxPrincipals})
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

// throttle is how long after one start of the agent launchd begins another (launchd.plist(5), ThrottleInterval).
const throttle = 10 * time.Second

// turnAway closes connections until launchd would start the agent at once for the next one, which finds what is mended by then. Without
// it clients would wait: launchd keeps the socket open.
func turnAway(ctx context.Context, listeners []net.Listener) {
	ctx, cancel := context.WithTimeout(ctx, throttle)
	defer cancel()
	defer context.AfterFunc(ctx, func() { closeAll(listeners) })()
	var all sync.WaitGroup
	for _, l := range listeners {
		all.Go(func() {
			for {
				conn, err := l.Accept()
				if err != nil {
					return
				}
				conn.Close()
			}
		})
	}
	all.Wait()
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
