/* A disk that is slow, or hangs: loaded with LD_PRELOAD, it lets what is done to the files below one directory wait.
 *
 * STALL_ROOT   the directory, by its real path
 * STALL_STATE  a file outside of it: as long as it is there and holds two numbers of milliseconds, each sync takes the
 *              first of them longer, and every other change of a file or a name the second; also one that waits already
 *
 * Not seen: reads, writes through mmap and stdio, and system calls that do not come by way of libc.
 */
#define _GNU_SOURCE
#include <errno.h>
#include <fcntl.h>
#include <limits.h>
#include <stdarg.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/stat.h>
#include <sys/syscall.h>
#include <sys/types.h>
#include <sys/uio.h>
#include <time.h>
#include <unistd.h>

enum what { SYNC, CHANGE };

static char root[PATH_MAX], state[PATH_MAX];
static size_t root_length;

__attribute__((constructor)) static void begin(void)
{
    const char *where = getenv("STALL_ROOT"), *told = getenv("STALL_STATE");
    if (!where || !told)
        return;
    snprintf(root, sizeof root, "%s", where);
    snprintf(state, sizeof state, "%s", told);
    root_length = strlen(root);
}

/* How long it takes now. */
static long now_ms(enum what what)
{
    char text[48];
    long ms[2] = {0, 0};
    ssize_t got;
    int fd;
    if (!root_length || (fd = (int)syscall(SYS_openat, AT_FDCWD, state, O_RDONLY | O_CLOEXEC)) < 0)
        return 0;
    got = (ssize_t)syscall(SYS_read, fd, text, sizeof text - 1);
    syscall(SYS_close, fd);
    text[got < 0 ? 0 : got] = 0;
    sscanf(text, "%ld %ld", &ms[0], &ms[1]);
    return ms[what];
}

static int below(const char *path)
{
    return !strncmp(path, root, root_length) && (path[root_length] == '/' || !path[root_length]);
}

static int is_ours(int fd)
{
    char link[32], path[PATH_MAX];
    ssize_t got;
    snprintf(link, sizeof link, "/proc/self/fd/%d", fd);
    got = (ssize_t)syscall(SYS_readlinkat, AT_FDCWD, link, path, sizeof path - 1);
    if (got <= 0)
        return 0;
    path[got] = 0;
    return below(path);
}

static void wait_for(enum what what)
{
    struct timespec begun, now, step = {0, 1000 * 1000};
    clock_gettime(CLOCK_MONOTONIC, &begun);
    for (;;) {
        long ms = now_ms(what), gone;
        clock_gettime(CLOCK_MONOTONIC, &now);
        gone = (now.tv_sec - begun.tv_sec) * 1000 + (now.tv_nsec - begun.tv_nsec) / 1000000;
        if (gone >= ms)
            return;
        step.tv_nsec = (ms - gone > 20 ? 20 : ms - gone) * 1000 * 1000;
        nanosleep(&step, NULL);
    }
}

static void stall(enum what what, int fd)
{
    int kept = errno;
    if (now_ms(what) > 0 && is_ours(fd))
        wait_for(what);
    errno = kept;
}

static void stall_name(int at, const char *path)
{
    int kept = errno;
    if (now_ms(CHANGE) > 0 && (path[0] == '/' || at == AT_FDCWD ? below(path) : is_ours(at)))
        wait_for(CHANGE);
    errno = kept;
}

int fsync(int fd) { stall(SYNC, fd); return (int)syscall(SYS_fsync, fd); }
int fdatasync(int fd) { stall(SYNC, fd); return (int)syscall(SYS_fdatasync, fd); }

int sync_file_range(int fd, off64_t at, off64_t n, unsigned flags)
{
    stall(SYNC, fd);
    return (int)syscall(SYS_sync_file_range, fd, at, n, flags);
}

ssize_t write(int fd, const void *data, size_t n) { stall(CHANGE, fd); return syscall(SYS_write, fd, data, n); }

ssize_t pwrite(int fd, const void *data, size_t n, off_t at)
{
    stall(CHANGE, fd);
    return syscall(SYS_pwrite64, fd, data, n, at);
}

ssize_t pwrite64(int fd, const void *data, size_t n, off64_t at)
{
    stall(CHANGE, fd);
    return syscall(SYS_pwrite64, fd, data, n, at);
}

ssize_t writev(int fd, const struct iovec *parts, int count)
{
    stall(CHANGE, fd);
    return syscall(SYS_writev, fd, parts, count);
}

int ftruncate(int fd, off_t size) { stall(CHANGE, fd); return (int)syscall(SYS_ftruncate, fd, size); }
int ftruncate64(int fd, off64_t size) { stall(CHANGE, fd); return (int)syscall(SYS_ftruncate, fd, size); }

int fallocate(int fd, int mode, off_t at, off_t n)
{
    stall(CHANGE, fd);
    return (int)syscall(SYS_fallocate, fd, mode, at, n);
}

int fallocate64(int fd, int mode, off64_t at, off64_t n)
{
    stall(CHANGE, fd);
    return (int)syscall(SYS_fallocate, fd, mode, at, n);
}

static int opened(int at, const char *path, int flags, mode_t mode)
{
    if (flags & O_CREAT)
        stall_name(at, path);
    return (int)syscall(SYS_openat, at, path, flags, mode);
}

#define OPENS(name, first, at, path) \
    int name(first const char *path, int flags, ...) \
    { \
        mode_t mode = 0; \
        va_list more; \
        va_start(more, flags); \
        if (flags & (O_CREAT | __O_TMPFILE)) \
            mode = va_arg(more, mode_t); \
        va_end(more); \
        return opened(at, path, flags, mode); \
    }
#define NOTHING
#define AT int at,
OPENS(open, NOTHING, AT_FDCWD, path)
OPENS(open64, NOTHING, AT_FDCWD, path)
OPENS(openat, AT, at, path)
OPENS(openat64, AT, at, path)

int renameat(int from_at, const char *from, int to_at, const char *to)
{
    stall_name(to_at, to);
    return (int)syscall(SYS_renameat2, from_at, from, to_at, to, 0);
}

int rename(const char *from, const char *to) { return renameat(AT_FDCWD, from, AT_FDCWD, to); }

int linkat(int from_at, const char *from, int to_at, const char *to, int flags)
{
    stall_name(to_at, to);
    return (int)syscall(SYS_linkat, from_at, from, to_at, to, flags);
}

int link(const char *from, const char *to) { return linkat(AT_FDCWD, from, AT_FDCWD, to, 0); }

int mkdirat(int at, const char *path, mode_t mode)
{
    stall_name(at, path);
    return (int)syscall(SYS_mkdirat, at, path, mode);
}

int mkdir(const char *path, mode_t mode) { return mkdirat(AT_FDCWD, path, mode); }

int unlinkat(int at, const char *path, int flags)
{
    stall_name(at, path);
    return (int)syscall(SYS_unlinkat, at, path, flags);
}

int unlink(const char *path) { return unlinkat(AT_FDCWD, path, 0); }
int rmdir(const char *path) { return unlinkat(AT_FDCWD, path, AT_REMOVEDIR); }
