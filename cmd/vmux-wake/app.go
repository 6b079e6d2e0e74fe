// SPDX-License-Identifier: BSD-3-Clause

package main

import (
	"fmt"
	"os"
	"path/filepath"
	"strings"

	"vmux.app/toolkit/internal/cli"
	"vmux.app/toolkit/internal/store"
	"vmux.app/toolkit/internal/wake/apns"
)

func app() *cli.App {
	return &cli.App{
		Name:  "vmux-wake",
		Usage: "send a test push to a phone, and say what came of it",
		Description: "Sends the push that vmux-agent wakes a phone with, by Apple's push service. It needs the key that Apple\n" +
			"gives to developers of the phone's app, and the device token that the phone has sent.",
		Flags: []cli.Flag{
			&cli.StringFlag{Name: "phone", Usage: "push to the paired phone called `NAME`, or with this pin"},
			&cli.StringFlag{Name: "key", Usage: "authorize with the push key in `FILE`", TakesFile: true, DefaultText: "~/.ssh/vmux-apns.p8, else ~/.config/vmux/apns-key.p8"},
			&cli.StringFlag{Name: "key-id", Usage: "whose id is `ID`, 10 characters"},
			&cli.StringFlag{Name: "team-id", Usage: "of the developer team `ID`, 10 characters"},
			&cli.StringFlag{Name: "device-token", Usage: "push to `TOKEN`, in hexadecimal, instead of a paired phone"},
			&cli.StringFlag{Name: "topic", Usage: "to the app with the bundle id `TOPIC`", DefaultText: "as the phone says"},
			cli.Choice("environment", "where the device token is from: production, or sandbox for development builds", "", apns.Production, apns.Sandbox),
			&cli.BoolFlag{Name: "silent", Usage: "show nothing on the phone; such pushes may be late, or dropped"},
			&cli.BoolFlag{Name: "wait", Usage: "wait until the phone answers on the link, 20 s at most"},
			&cli.StringFlag{Name: "endpoint", Usage: "send to the relay at `URL` instead of Apple"},
			&cli.StringFlag{Name: "ca-file", Usage: "trust who is in `FILE` to certify the relay", TakesFile: true},
			cli.ConfigFlag(),
		},
		Action: run,
	}
}

// settings are the flags that are settings too, in the table [wake].
func settings() []string {
	return []string{"key", "key-id", "team-id", "device-token", "topic", "environment", "endpoint", "ca-file"}
}

// loadConfig returns the configuration with the flags in it.
func loadConfig(c *cli.Context) (store.Config, error) {
	if c.IsSet("phone") && c.IsSet("device-token") {
		return store.Config{}, &cli.UsageError{Problem: "--phone and --device-token exclude one another", Hint: "give one of them"}
	}
	if c.IsSet("wait") && c.IsSet("device-token") {
		return store.Config{}, &cli.UsageError{Problem: "--wait needs a paired phone, not --device-token", Hint: "leave one of them out"}
	}
	config, err := cli.LoadConfig(c)
	if err != nil {
		return store.Config{}, err
	}
	for _, name := range settings() {
		if !c.IsSet(name) {
			continue
		}
		value := c.String(name)
		if (name == "key" || name == "ca-file") && value != "" && !strings.HasPrefix(value, "~") {
			if value, err = filepath.Abs(value); err != nil { // from here, as of any file on a command line
				return store.Config{}, fmt.Errorf("--%s: %w", name, err)
			}
		}
		if err := config.Set(store.Env(os.Getenv), "wake."+name, value, "--"+name); err != nil {
			return store.Config{}, err
		}
	}
	return config, nil
}
