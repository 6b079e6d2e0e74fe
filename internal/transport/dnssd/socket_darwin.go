// SPDX-License-Identifier: BSD-3-Clause

package dnssd

// onlyOwnGroups has nothing to do: memberships are a socket's own here.
func onlyOwnGroups(fd, family int) {}
