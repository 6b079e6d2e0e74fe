// SPDX-License-Identifier: BSD-3-Clause

// Package netnstest runs tests in network namespaces of their own: two hosts
// with a cable between them, IPv4 and IPv6, multicast included, from which no
// packet gets out. All but Alone exists on Linux only, so tests that use it are in files
// named *_linux_test.go.
//
//	func TestOverTheWire(t *testing.T) {
//		netnstest.Run(t, func(t *testing.T, n *netnstest.Net) {
//			server := exec.Command("some-server", n.B.IPv4.String())
//			if err := n.B.Start(server); err != nil { … }
//			… dial n.B.IPv4 from here: the test itself is in A
//		})
//	}
//
// Run starts the test binary again for this one test, in a new network
// namespace A, and for an ordinary user in a new user namespace as well, where
// the test is root and owns the same files as before. B belongs to a process
// that A starts and joins by its pid. Nothing has a name outside, so there is
// nothing to clean up: all of it ends with the processes.
//
// Only one part of a process can be in another namespace than the rest: one
// thread. Hence commands are started in B with Namespace.Start, and a socket is
// opened in B with Namespace.Do; code that starts goroutines of its own cannot be moved
// there, and has to be a command. The test binary can be one: give it a role in
// TestMain, by an environment variable.
//
// Where namespaces or the ip command are not to be had, the test is skipped and
// says why; with CI=true in the environment it fails instead.
//
// A package whose tests start commands that look for phones, or offer one, runs all of them by Alone, from its TestMain,
// so that nobody outside hears or answers them.
package netnstest
