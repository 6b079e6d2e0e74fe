#!/bin/sh
# SPDX-License-Identifier: BSD-3-Clause
#
# service.sh enable|disable, called by make: has what is installed serve the user who calls this, or no longer.
set -eu

agent=$BINDIR/vmux-agent
user=$(id -un)
case ${1:-} in
enable) again='make install-user' ;;
disable) again='make uninstall-user' ;;
*)
	echo "usage: service.sh enable|disable" >&2
	exit 2
	;;
esac

fail() {
	echo "error: $1" >&2
	echo "hint: $2" >&2
	exit 1
}

[ -z "$DESTDIR" ] || fail "DESTDIR=$DESTDIR is not this system, and nothing runs there" "leave DESTDIR out: $again"
if [ "$(id -u)" -eq 0 ] && [ -n "${SUDO_USER:-}" ]; then
	fail "with sudo this is about root, not about $SUDO_USER" "as $SUDO_USER: $again"
fi

# installed FILE
installed() {
	if [ ! -x "$agent" ] || [ ! -f "$1" ]; then
		fail "vmux is not installed in ${BINDIR%/bin}: $agent and $1 are wanted" "make && sudo make install"
	fi
}

gone() { echo "vmux-agent serves nothing for $user any more, unless started by hand."; }

serving() {
	echo "vmux-agent serves ~/.ssh/vmux-agent.sock for $user, from now on and after each login."
	echo "ssh finds it with: export SSH_AUTH_SOCK=~/.ssh/vmux-agent.sock"
}

# vacant MANAGER: it would take the socket from who serves it.
vacant() {
	command -v ssh-add >/dev/null 2>&1 || return 0
	status=0
	SSH_AUTH_SOCK=$HOME/.ssh/vmux-agent.sock ssh-add -l >/dev/null 2>&1 || status=$?
	[ $status -eq 2 ] || fail "an agent that $1 has not started serves ~/.ssh/vmux-agent.sock" "end it, then $again"
}

manager() {
	by_hand="where systemd is not in charge, vmux-agent is started by hand"
	command -v systemctl >/dev/null 2>&1 || fail "systemctl is not installed" "$by_hand: $agent"
	: "${XDG_RUNTIME_DIR:=/run/user/$(id -u)}" # su does not set it
	export XDG_RUNTIME_DIR
	why=$(systemctl --user show --property=Version 2>&1 >/dev/null) ||
		fail "systemd's manager for $user does not run: $why" \
			"log in as $user on a console, a desktop or by ssh, not by su or sudo, then $again; $by_hand"
}

systemd_enable() {
	installed "$UNITDIR/vmux-agent.socket"
	manager
	systemctl --user --quiet is-active vmux-agent.socket || vacant systemd
	systemctl --user daemon-reload
	# Where systemd does not look for units, they have to be linked.
	systemctl --user cat vmux-agent.socket vmux-agent.service vmux-signer.service >/dev/null 2>&1 ||
		systemctl --user link "$UNITDIR/vmux-agent.socket" "$UNITDIR/vmux-agent.service" "$UNITDIR/vmux-signer.service"
	systemctl --user enable --now vmux-agent.socket
	serving
	if systemctl --user --quiet is-active vmux-agent.service; then
		echo "The agent that runs was started before. To replace it, and end its certificates: systemctl --user restart vmux-agent"
	fi
}

systemd_disable() {
	manager
	# The socket first, or a client would start the agent again.
	for unit in vmux-agent.socket vmux-agent.service vmux-signer.service; do
		if systemctl --user --quiet is-active "$unit"; then
			systemctl --user stop "$unit"
		fi
	done
	for unit in vmux-agent.socket vmux-agent.service vmux-signer.service; do
		# After make uninstall there may be nothing left to disable.
		why=$(systemctl --user disable "$unit" 2>&1) || [ ! -f "$UNITDIR/$unit" ] ||
			fail "$unit is not disabled: $why" "see what systemd has: systemctl --user status $unit"
	done
	gone
}

plist=$HOME/Library/LaunchAgents/$LABEL.plist
domain=gui/$(id -u)

loaded() { launchctl print "$domain/$LABEL" >/dev/null 2>&1; }

tries=1 # of loading it

unload() {
	# One that takes its time to end is 36, Operation now in progress.
	launchctl bootout "$domain/$LABEL" 2>/dev/null || loaded || return 0 # it was not loaded
	tries=6
	# It ends behind our back, and cannot be loaded before it has.
	for _ in 1 2 3 4 5 6 7 8 9 10; do
		loaded || return 0
		sleep 1
	done
}

# filled FILE: the property list with this user's home, as XML and as sed's replacement.
filled() {
	home=$(printf '%s\n' "$HOME" | sed -e 's/&/\&amp;/g' -e 's/</\&lt;/g' -e 's/[\\|&]/\\&/g')
	sed "s|@home@|$home|" "$1"
}

launchd_enable() {
	installed "$LAUNCHDIR/$LABEL.plist"
	case $HOME in /*) ;; *) fail "HOME=$HOME does not begin with /" "log in as $user, then $again" ;; esac
	grep -q launch_activate_socket "$agent" ||
		fail "$agent was built without cgo and cannot take its socket from launchd" \
			"xcode-select --install, then make && sudo make install, then $again; or start it by hand: $agent"
	loaded || vacant launchd
	unload
	mkdir -p "$HOME/Library/LaunchAgents"
	# launchd makes no directory for the socket.
	[ -d "$HOME/.ssh" ] || mkdir -m 0700 "$HOME/.ssh"
	filled "$LAUNCHDIR/$LABEL.plist" >"$plist.new"
	chmod 0644 "$plist.new"
	mv -f "$plist.new" "$plist"
	launchctl enable "$domain/$LABEL"
	# For some seconds launchd may take one that has just ended for there: 5, Input/output error.
	until why=$(launchctl bootstrap "$domain" "$plist" 2>&1); do
		tries=$((tries - 1))
		[ $tries -gt 0 ] || fail "launchd does not start $LABEL for $user: $why" "log in as $user at the screen of this Mac, then $again"
		sleep 1
	done
	serving
}

launchd_disable() {
	unload
	rm -f "$plist"
	gone
}

case $SYSTEM in
Darwin) launchd_"$1" ;;
*) systemd_"$1" ;;
esac
