/* SPDX-License-Identifier: BSD-3-Clause */
/* The compiler encodes a message as it does for macOS, and system.c reads it. */
#pragma once
#include <stdint.h>
#include <stdbool.h>
typedef struct os_log_s *os_log_t;
typedef uint8_t os_log_type_t;
#define OS_LOG_TYPE_DEFAULT ((os_log_type_t)0x00)
#define OS_LOG_TYPE_INFO    ((os_log_type_t)0x01)
#define OS_LOG_TYPE_DEBUG   ((os_log_type_t)0x02)
#define OS_LOG_TYPE_ERROR   ((os_log_type_t)0x10)
#define OS_LOG_TYPE_FAULT   ((os_log_type_t)0x11)
os_log_t os_log_create(const char *subsystem, const char *category);
bool os_log_type_enabled(os_log_t oslog, os_log_type_t type);
void _os_log_impl(void *dso, os_log_t log, os_log_type_t type, const char *format, uint8_t *buf, uint32_t size);
#define os_log_with_type(log, type, format, ...) __extension__({ \
    os_log_t _log_tmp = (log); os_log_type_t _type_tmp = (type); \
    if (os_log_type_enabled(_log_tmp, _type_tmp)) { \
      static const char _os_fmt_str[] = format; \
      uint8_t _Alignas(16) _os_fmt_buf[__builtin_os_log_format_buffer_size(format, ##__VA_ARGS__)]; \
      _os_log_impl(0, _log_tmp, _type_tmp, _os_fmt_str, (uint8_t*)__builtin_os_log_format(_os_fmt_buf, format, ##__VA_ARGS__), (uint32_t)sizeof(_os_fmt_buf)); \
    } })
