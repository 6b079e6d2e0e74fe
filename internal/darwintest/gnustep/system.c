/* SPDX-License-Identifier: BSD-3-Clause */
/* Stand-ins for two services of macOS that have no framework: launchd's sockets and the unified log. */
#include <errno.h>
#include <fcntl.h>
#include <pthread.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <unistd.h>
#include <launch.h>
#include <os/log.h>

/* FAKE_LAUNCHD is "NAME FIRST COUNT": launchd has COUNT sockets under NAME for this process, at descriptors from FIRST on. Each name is
 * handed out once, as launch_activate_socket(3) has it: EALREADY then, ENOENT for another name, ESRCH without launchd. */
int launch_activate_socket(const char *name, int **fds, size_t *cnt)
{
  static pthread_mutex_t mu = PTHREAD_MUTEX_INITIALIZER;
  static int taken;
  const char *env = getenv("FAKE_LAUNCHD");
  char has[64];
  int first, n, again;
  if (!env) return ESRCH;
  if (sscanf(env, "%63s %d %d", has, &first, &n) != 3) abort();
  if (strcmp(has, name)) return ENOENT;
  pthread_mutex_lock(&mu);
  again = taken;
  taken = 1;
  pthread_mutex_unlock(&mu);
  if (again) return EALREADY;
  *fds = malloc(n * sizeof **fds + 1);
  *cnt = n;
  for (int i = 0; i < n; i++) (*fds)[i] = first + i;
  return 0;
}

struct os_log_s { char *subsystem, *category; };

/* FAKE_OSLOG is the file that gets a line "SUBSYSTEM CATEGORY TYPE TEXT" for each message, and "SUBSYSTEM CATEGORY created". */
static void say(const char *line)
{
  const char *file = getenv("FAKE_OSLOG");
  int fd = file ? open(file, O_WRONLY | O_APPEND | O_CREAT, 0600) : -1;
  if (fd < 0) return;
  if (write(fd, line, strlen(line)) < 0) abort();
  close(fd);
}

os_log_t os_log_create(const char *subsystem, const char *category)
{
  struct os_log_s *l = malloc(sizeof *l);
  char line[256];
  l->subsystem = strdup(subsystem); /* the caller's may go */
  l->category = strdup(category);
  snprintf(line, sizeof line, "%s %s created\n", subsystem, category);
  say(line);
  return l;
}

bool os_log_type_enabled(os_log_t l, os_log_type_t type) { return l != NULL; }

/* Reads what __builtin_os_log_format made: flags and count, then for each argument kind and flags, size, and value. Only %s without
 * precision, kind 2, is known here. What is not marked as public is hidden, as macOS does with strings, and of what is longer than
 * 1024 bytes the beginning is kept. */
void _os_log_impl(void *dso, os_log_t l, os_log_type_t type, const char *format, uint8_t *buf, uint32_t size)
{
  const char *name = type == OS_LOG_TYPE_DEFAULT ? "default" : type == OS_LOG_TYPE_INFO ? "info" : type == OS_LOG_TYPE_DEBUG ? "debug" :
    type == OS_LOG_TYPE_ERROR ? "error" : type == OS_LOG_TYPE_FAULT ? "fault" : "?";
  const char *text;
  char *line;
  if (size != 12 || buf[1] != 1 || buf[2] >> 4 != 2 || buf[3] != 8) abort();
  memcpy(&text, buf + 4, sizeof text);
  if ((buf[2] & 0xf) != 2) text = "<private>";
  if (asprintf(&line, "%s %s %s %.1024s\n", l->subsystem, l->category, name, text) < 0) abort();
  say(line);
  free(line);
}
