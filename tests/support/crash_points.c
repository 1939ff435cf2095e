/* Kills the process before its N-th call that changes a disk, as a power cut or `kill -9` may.

   Loaded by LD_PRELOAD. crash_at(N) arms it and crash_count() tells how many such calls there were. A call that writes
   has a second point: half of its bytes are written, and then the process is killed. */

#define _GNU_SOURCE
#include <dlfcn.h>
#include <fcntl.h>
#include <signal.h>
#include <stdarg.h>
#include <stdlib.h>
#include <sys/stat.h>
#include <sys/types.h>
#include <unistd.h>

static long count, last = -1;

void crash_at(long number) { count = 0; last = number; }
long crash_count(void) { return count; }

static int reached(void) { return last >= 0 && count++ == last; }
static void die(void) { kill(getpid(), SIGKILL); for (;;) pause(); }
static void point(void) { if (reached()) die(); }

#define REAL(name) ((__typeof__(&name))dlsym(RTLD_NEXT, #name))

#define CHANGE(type, name, parameters, arguments) \
    type name parameters { point(); return REAL(name) arguments; }

CHANGE(int, rename, (const char *a, const char *b), (a, b))
CHANGE(int, renameat, (int d, const char *a, int e, const char *b), (d, a, e, b))
CHANGE(int, renameat2, (int d, const char *a, int e, const char *b, unsigned f), (d, a, e, b, f))
CHANGE(int, unlink, (const char *a), (a))
CHANGE(int, unlinkat, (int d, const char *a, int f), (d, a, f))
CHANGE(int, rmdir, (const char *a), (a))
CHANGE(int, mkdir, (const char *a, mode_t m), (a, m))
CHANGE(int, mkdirat, (int d, const char *a, mode_t m), (d, a, m))
CHANGE(int, link, (const char *a, const char *b), (a, b))
CHANGE(int, linkat, (int d, const char *a, int e, const char *b, int f), (d, a, e, b, f))
CHANGE(int, symlink, (const char *a, const char *b), (a, b))
CHANGE(int, chmod, (const char *a, mode_t m), (a, m))
CHANGE(int, fchmod, (int d, mode_t m), (d, m))
CHANGE(int, fchmodat, (int d, const char *a, mode_t m, int f), (d, a, m, f))
CHANGE(int, ftruncate64, (int d, off64_t n), (d, n))
CHANGE(int, fsync, (int d), (d))
CHANGE(int, fdatasync, (int d), (d))

ssize_t write(int d, const void *data, size_t n) {
    __typeof__(&write) real = REAL(write);
    point();
    if (n > 1 && reached()) { real(d, data, n / 2); die(); }
    return real(d, data, n);
}

#define OPEN(name, parameters, ...) \
    int name parameters { \
        mode_t mode = 0; \
        if (flags & (O_CREAT | O_TMPFILE)) { va_list more; va_start(more, flags); mode = va_arg(more, mode_t); va_end(more); } \
        if (flags & (O_CREAT | O_TRUNC)) point(); \
        return REAL(name)(__VA_ARGS__, mode); \
    }

OPEN(open, (const char *a, int flags, ...), a, flags)
OPEN(open64, (const char *a, int flags, ...), a, flags)
OPEN(openat, (int d, const char *a, int flags, ...), d, a, flags)
OPEN(openat64, (int d, const char *a, int flags, ...), d, a, flags)
