/* SPDX-License-Identifier: BSD-3-Clause */
/* what launchd offers to the programs that it starts; see system.c */
#pragma once
#include <stddef.h>
int launch_activate_socket(const char *name, int **fds, size_t *cnt);
