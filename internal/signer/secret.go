// SPDX-License-Identifier: BSD-3-Clause

package signer

import (
	"bytes"
	"context"
	"errors"
	"fmt"
	"io"
	"os/exec"

	"vmux.app/toolkit/internal/keyfile"
)

// Secret asks for a passphrase and gives what the program prints in its first
// line. ErrDenied: another status than 0.
func (a *Askpass) Secret(ctx context.Context, text string) ([]byte, error) {
	cmd := exec.CommandContext(ctx, a.program, text)
	cmd.WaitDelay = askpassEnd
	ownGroup(cmd)
	out, err := cmd.StdoutPipe()
	if err != nil {
		return nil, err
	}
	if err := cmd.Start(); err != nil {
		return nil, fmt.Errorf("cannot ask by %s: %w", a.program, err)
	}
	b, err := io.ReadAll(io.LimitReader(out, keyfile.MaxPassphrase+2))
	err = errors.Join(err, cmd.Wait())
	var status *exec.ExitError
	switch {
	case ctx.Err() != nil:
		return nil, context.Cause(ctx)
	case errors.As(err, &status):
		return nil, ErrDenied
	case err != nil:
		return nil, fmt.Errorf("cannot ask by %s: %w", a.program, err)
	}
	line, _, _ := bytes.Cut(b, []byte("\n"))
	return bytes.TrimSuffix(line, []byte("\r")), nil
}
