// SPDX-License-Identifier: BSD-3-Clause

//go:build !linux

package tpm

import (
	"errors"
	"time"
)

func dial(string, time.Time) (channel, error) {
	return nil, errors.New("TPMs are used on Linux only")
}
