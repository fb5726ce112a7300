/* Counts a process's calls that touch files, and lets something happen at the n-th of them.
 *
 * Loaded by LD_PRELOAD; `faults_arm` starts it, `faults_count` tells how many there were. A call is
 * counted where its kind is in `mask`. */
#define _GNU_SOURCE
#include <dirent.h>
#include <dlfcn.h>
#include <errno.h>
#include <fcntl.h>
#include <signal.h>
#include <stdarg.h>
#include <sys/ioctl.h>
#include <sys/stat.h>
#include <sys/types.h>
#include <unistd.h>

enum { NAMES = 1, DATA = 2, SYNCS = 4, READS = 8, LOOKS = 16 };
enum { COUNT, KILL, FAIL, SHORT, FAIL_FROM_HERE, INTERRUPT };

static long count = -1, at;
static int action, code, mask, no_exchange;

void faults_arm(long n, int what, int error, int kinds, int without_exchange) {
    at = n, action = what, code = error, mask = kinds, no_exchange = without_exchange, count = 0;
}
void faults_disarm(void) { mask = 0; }
long faults_count(void) { return count; }

/* 1 where the call is to fail, 2 where it is to do only part of its work */
static int strikes(int kind) {
    if (count < 0 || !(mask & kind)) return 0;
    count++;
    if (action == FAIL_FROM_HERE && count >= at) { errno = code; return 1; }
    if (count != at) return 0;
    switch (action) {
    case KILL: kill(getpid(), SIGKILL); for (;;) pause();
    case INTERRUPT: raise(SIGINT); return 0;
    case FAIL: errno = code; return 1;
    case SHORT: return 2;
    }
    return 0;
}
#define REAL(type, name, ...) \
    static type (*real)(__VA_ARGS__); \
    if (!real) real = (type (*)(__VA_ARGS__))dlsym(RTLD_NEXT, name)
#define WRAP(type, bad, kind, name, parameters, arguments) \
    type name parameters { \
        static type (*real) parameters; \
        if (!real) real = (type (*) parameters)dlsym(RTLD_NEXT, #name); \
        if (strikes(kind) == 1) return bad; \
        return real arguments; \
    }
#define WRAP_DATA(kind, name, parameters, arguments, less) \
    ssize_t name parameters { \
        static ssize_t (*real) parameters; \
        if (!real) real = (ssize_t (*) parameters)dlsym(RTLD_NEXT, #name); \
        int struck = file > 2 ? strikes(kind) : 0; \
        if (struck == 1) return -1; \
        if (struck == 2 && size > 1) less; \
        return real arguments; \
    }

WRAP(int, -1, NAMES, rename, (const char *a, const char *b), (a, b))
WRAP(int, -1, NAMES, link, (const char *a, const char *b), (a, b))
WRAP(int, -1, NAMES, linkat, (int d, const char *a, int e, const char *b, int f), (d, a, e, b, f))
WRAP(int, -1, NAMES, unlink, (const char *a), (a))
WRAP(int, -1, NAMES, unlinkat, (int d, const char *a, int f), (d, a, f))
WRAP(int, -1, NAMES, mkdir, (const char *a, mode_t m), (a, m))
WRAP(int, -1, NAMES, rmdir, (const char *a), (a))
WRAP(int, -1, NAMES, chmod, (const char *a, mode_t m), (a, m))
WRAP(int, -1, NAMES, fchmodat, (int d, const char *a, mode_t m, int f), (d, a, m, f))
WRAP(int, -1, NAMES, fchmod, (int d, mode_t m), (d, m))
WRAP(int, -1, NAMES, chown, (const char *a, uid_t u, gid_t g), (a, u, g))
WRAP(int, -1, NAMES, ftruncate64, (int d, off64_t n), (d, n))
WRAP(int, -1, SYNCS, fsync, (int d), (d))
WRAP(DIR *, NULL, READS, opendir, (const char *a), (a))
WRAP(DIR *, NULL, READS, fdopendir, (int d), (d))
WRAP(int, -1, LOOKS, stat64, (const char *a, struct stat64 *s), (a, s))
WRAP(int, -1, LOOKS, lstat64, (const char *a, struct stat64 *s), (a, s))
WRAP(int, -1, LOOKS, fstat64, (int d, struct stat64 *s), (d, s))
WRAP(int, -1, LOOKS, fstatat64, (int d, const char *a, struct stat64 *s, int f), (d, a, s, f))
WRAP_DATA(READS, read, (int file, void *to, size_t size), (file, to, size), size /= 2)
WRAP_DATA(READS, pread64, (int file, void *to, size_t size, off64_t o), (file, to, size, o), size /= 2)
WRAP_DATA(DATA, write, (int file, const void *from, size_t size), (file, from, size), size /= 2)
WRAP_DATA(DATA, sendfile64, (int file, int in, off64_t *o, size_t size), (file, in, o, size), size /= 2)
WRAP_DATA(DATA, copy_file_range,
          (int in, off64_t *o, int file, off64_t *p, size_t size, unsigned flags),
          (in, o, file, p, size, flags), size /= 2)

int renameat2(int d, const char *a, int e, const char *b, unsigned flags) {
    REAL(int, "renameat2", int, const char *, int, const char *, unsigned);
    if (strikes(NAMES) == 1) return -1;
    if (no_exchange) { errno = EINVAL; return -1; }
    return real(d, a, e, b, flags);
}

static int kind_of(int flags) { return flags & O_CREAT ? NAMES : READS; }

int open64(const char *path, int flags, ...) {
    REAL(int, "open64", const char *, int, mode_t);
    va_list rest;
    va_start(rest, flags);
    mode_t mode = flags & O_CREAT ? va_arg(rest, mode_t) : 0;
    va_end(rest);
    return strikes(kind_of(flags)) == 1 ? -1 : real(path, flags, mode);
}

int openat64(int folder, const char *path, int flags, ...) {
    REAL(int, "openat64", int, const char *, int, mode_t);
    va_list rest;
    va_start(rest, flags);
    mode_t mode = flags & O_CREAT ? va_arg(rest, mode_t) : 0;
    va_end(rest);
    return strikes(kind_of(flags)) == 1 ? -1 : real(folder, path, flags, mode);
}

int ioctl(int file, unsigned long request, ...) {
    REAL(int, "ioctl", int, unsigned long, void *);
    va_list rest;
    va_start(rest, request);
    void *argument = va_arg(rest, void *);
    va_end(rest);
    if (request == 0x40049409 && strikes(DATA) == 1) return -1; /* FICLONE */
    return real(file, request, argument);
}
