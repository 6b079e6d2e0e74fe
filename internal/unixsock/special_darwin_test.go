// SPDX-License-Identifier: BSD-3-Clause

package unixsock

func childSpecial(string, string) string { return "what?" }
