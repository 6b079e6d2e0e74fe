// SPDX-License-Identifier: BSD-3-Clause

//go:build (darwin || gnustep) && cgo

// Package userdefaults keeps values in macOS's user defaults, where "defaults read DOMAIN" shows them. It is on macOS with
// cgo only.
package userdefaults

import (
	"errors"
	"fmt"
	"io/fs"

	"vmux.app/toolkit/internal/cocoa"
)

// Domain is one program's values. It is safe for concurrent use; several processes must exclude one another.
type Domain struct {
	name   string
	object cocoa.Object // NSUserDefaults, for as long as the process lives
}

var (
	errForm    = errors.New("it is no data")
	errWritten = errors.New("the user defaults were not written")
)

// Open gives a domain. The error is one of cocoa.Supported, or says that there is no such domain.
func Open(name string) (*Domain, error) {
	if err := cocoa.Supported(); err != nil {
		return nil, err
	}
	d := &Domain{name: name}
	cocoa.Pool(func() {
		// A program's own domain cannot be opened by its name.
		if cocoa.Text(cocoa.Get(cocoa.Class("NSBundle"), "mainBundle"), "bundleIdentifier") == name {
			d.object = cocoa.Get(cocoa.Class("NSUserDefaults"), "standardUserDefaults").Retain()
		} else {
			d.object = cocoa.New("NSUserDefaults", "initWithSuiteName:", name)
		}
	})
	if d.object.IsNil() {
		return nil, fmt.Errorf("the user defaults have no domain %s", name)
	}
	return d, nil
}

// String is the domain's name, for messages.
func (d *Domain) String() string { return "user defaults of " + d.name }

// Get gives a value, nil when there is none. An error says that it is there and no data.
func (d *Domain) Get(key string) (value []byte, err error) {
	cocoa.Pool(func() {
		cocoa.Send(d.object, "synchronize") // another process may have written
		switch o := cocoa.Get(d.object, "objectForKey:", key); {
		case o.IsNil():
		case !cocoa.Is(o, "isKindOfClass:", cocoa.Class("NSData")):
			err = errForm
		default:
			if value = cocoa.Bytes(o); value == nil {
				value = []byte{}
			}
		}
	})
	return value, err
}

// Set replaces a value.
func (d *Domain) Set(key string, value []byte) (err error) {
	cocoa.Pool(func() {
		cocoa.Send(d.object, "setObject:forKey:", value, key)
		if !cocoa.Is(d.object, "synchronize") {
			err = errWritten
		}
	})
	return err
}

// Rename gives a value, whatever it is, another key; fs.ErrExist when that is taken.
func (d *Domain) Rename(from, to string) (err error) {
	cocoa.Pool(func() {
		if !cocoa.Get(d.object, "objectForKey:", to).IsNil() {
			err = fs.ErrExist
			return
		}
		o := cocoa.Get(d.object, "objectForKey:", from)
		if o.IsNil() {
			err = fs.ErrNotExist
			return
		}
		cocoa.Send(d.object, "setObject:forKey:", o, to)
		cocoa.Send(d.object, "removeObjectForKey:", from)
		if !cocoa.Is(d.object, "synchronize") {
			err = errWritten
		}
	})
	return err
}
