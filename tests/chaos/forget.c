/* A file layer that can forget: loaded with LD_PRELOAD, it notes in a journal what is done to the files below one
 * directory, and what of it was synced, so that after a SIGKILL the directory can be rolled back to what a power cut
 * may leave (tests/chaos/forgetting.py does that).
 *
 * FORGET_ROOT   the directory, by its real path
 * FORGET_STATE  a directory outside of it, on the same file system: "journal" is appended to, and "graves" keeps a
 *               link of every file that lost a name, until the loss of the name is itself on stable storage
 * FORGET_FSYNC  "none": syncs are noted and not done (the machine's own power stays on, after all); "lies": neither
 *               noted nor done, as on a disk that says so and forgets
 * As long as FORGET_STATE holds a file "slow" with a number of milliseconds, a sync takes so long; removed, it ends.
 *
 * Not seen: writes through mmap (that there is such a mapping is noted), through stdio (noted as well: RocksDB's LOG),
 * and system calls that do not come by way of libc.  Records are laid out for little-endian machines.
 */
#define _GNU_SOURCE
#include <dlfcn.h>
#include <errno.h>
#include <fcntl.h>
#include <limits.h>
#include <pthread.h>
#include <stdarg.h>
#include <stdint.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/mman.h>
#include <sys/sendfile.h>
#include <sys/stat.h>
#include <sys/syscall.h>
#include <sys/types.h>
#include <sys/uio.h>
#include <time.h>
#include <unistd.h>

enum kind { CREATE = 1, MKDIR, UNLINK, RMDIR, RENAME, LINK, WRITE, TRUNCATE, SYNC_BEGIN, SYNC_END, MAPPED, LOOSE };

struct record {
    uint32_t bytes, kind;   /* bytes: of all of it */
    uint64_t ino, token;
    int64_t offset, length; /* WRITE: the range; TRUNCATE: new size, 0 */
    int64_t size;           /* of the file, before */
};                          /* then: names relative to the root, or the bytes that are overwritten or cut off */

#define FDS 65536
static char root[PATH_MAX], graves[PATH_MAX], slow[PATH_MAX];
static size_t root_length;
static dev_t root_dev;
static int journal = -1, skip_sync, lies;
static uint64_t known[FDS]; /* of a descriptor: inode << 1 | whether it is below the root */
static uint64_t tokens;
static pthread_mutex_t names = PTHREAD_MUTEX_INITIALIZER;
static struct grave { struct grave *next; uint64_t directory, number; } *dug;

typedef FILE *opener(const char *, const char *);

static opener *next_of(const char *name)
{
    opener *found = (opener *)dlsym(RTLD_NEXT, name);
    if (!found)
        abort();
    return found;
}

__attribute__((constructor)) static void begin(void)
{
    const char *where = getenv("FORGET_ROOT"), *state = getenv("FORGET_STATE"), *sync = getenv("FORGET_FSYNC");
    struct stat st;
    char path[PATH_MAX];
    int fd, high;
    if (!where || !state || !realpath(where, root) || stat(root, &st))
        return;
    root_length = strlen(root);
    root_dev = st.st_dev;
    lies = sync && !strcmp(sync, "lies");
    skip_sync = lies || (sync && !strcmp(sync, "none"));
    snprintf(graves, sizeof graves, "%s/graves", state);
    snprintf(slow, sizeof slow, "%s/slow", state);
    snprintf(path, sizeof path, "%s/journal", state);
    fd = (int)syscall(SYS_openat, AT_FDCWD, path, O_WRONLY | O_APPEND | O_CREAT | O_CLOEXEC, 0644);
    if (fd < 0)
        return;
    high = fcntl(fd, F_DUPFD_CLOEXEC, 512); /* out of the way of those who close what they did not open */
    if (high >= 0) {
        syscall(SYS_close, fd);
        fd = high;
    }
    tokens = (uint64_t)getpid() << 32;
    journal = fd;
}

static void note(uint32_t kind, uint64_t ino, uint64_t token, int64_t offset, int64_t length, int64_t size,
                 const void *more, size_t bytes)
{
    struct record head = {(uint32_t)(sizeof head + bytes), kind, ino, token, offset, length, size};
    struct iovec parts[2] = {{&head, sizeof head}, {(void *)more, bytes}};
    int saved = errno;
    /* One call, so that records of threads and processes never mix; a journal that cannot be written would lie. */
    if (syscall(SYS_writev, journal, parts, bytes ? 2 : 1) != (ssize_t)head.bytes)
        abort();
    errno = saved;
}

static int below(const char *path)
{
    return !strncmp(path, root, root_length) && (path[root_length] == '/' || !path[root_length]);
}

/* Whether a descriptor is of a file or directory below the root. */
static int ours(int fd, struct stat *st)
{
    char link[64], path[PATH_MAX];
    uint64_t yes;
    ssize_t n;
    if (journal < 0 || fd < 0 || fd == journal || syscall(SYS_fstat, fd, st) || st->st_dev != root_dev ||
        !(S_ISREG(st->st_mode) || S_ISDIR(st->st_mode)))
        return 0;
    if (fd < FDS && known[fd] >> 1 == st->st_ino)
        return (int)(known[fd] & 1);
    snprintf(link, sizeof link, "/proc/self/fd/%d", fd);
    n = readlink(link, path, sizeof path - 1);
    if (n < 0)
        return 0;
    path[n] = 0;
    yes = (uint64_t)below(path);
    if (fd < FDS)
        known[fd] = (uint64_t)st->st_ino << 1 | yes;
    return (int)yes;
}

/* The name relative to the root, whichever way it was said; NULL if it is not below.  ``out`` has PATH_MAX bytes. */
static const char *relative(int at, const char *path, char *out)
{
    char whole[PATH_MAX], parent[PATH_MAX], link[64], *cut;
    int saved = errno;
    ssize_t n = 0;
    if (journal < 0 || !path)
        return NULL;
    if (path[0] == '/') {
        n = snprintf(whole, sizeof whole, "%s", path);
    } else if (at == AT_FDCWD) {
        if (!getcwd(parent, sizeof parent))
            goto none;
        n = snprintf(whole, sizeof whole, "%s/%s", parent, path);
    } else {
        snprintf(link, sizeof link, "/proc/self/fd/%d", at);
        n = readlink(link, parent, sizeof parent - 1);
        if (n < 0)
            goto none;
        parent[n] = 0;
        n = snprintf(whole, sizeof whole, "%s/%s", parent, path);
    }
    if (n >= (ssize_t)sizeof whole)
        goto none;
    while (n > 1 && whole[n - 1] == '/')
        whole[--n] = 0;
    cut = strrchr(whole, '/');
    if (cut == whole)
        goto none;
    *cut++ = 0;
    if (!realpath(whole, parent) || !below(parent))
        goto none;
    n = snprintf(out, PATH_MAX, "%s%s%s", parent + root_length, parent[root_length] ? "/" : "", cut);
    if (n >= PATH_MAX)
        goto none;
    if (out[0] == '/')
        memmove(out, out + 1, strlen(out));
    errno = saved;
    return out;
none:
    errno = saved;
    return NULL;
}

static uint64_t inode(int at, const char *path, struct stat *st)
{
    return fstatat(at, path, st, AT_SYMLINK_NOFOLLOW) ? 0 : (uint64_t)st->st_ino;
}

/* Keep a file that is about to lose a name; ``name`` is relative to the root. */
static void bury(int at, const char *path, const char *name)
{
    char parent[2 * PATH_MAX], grave[PATH_MAX + 32];
    struct stat st;
    struct grave *one;
    char *cut;
    int saved = errno;
    if (!inode(at, path, &st) || !S_ISREG(st.st_mode))
        goto done;
    snprintf(parent, sizeof parent, "%s/%s", root, name);
    cut = strrchr(parent, '/');
    *cut = 0;
    one = malloc(sizeof *one);
    if (!one)
        abort();
    one->number = __atomic_add_fetch(&tokens, 1, __ATOMIC_RELAXED);
    snprintf(grave, sizeof grave, "%s/%016lx", graves, (unsigned long)one->number);
    if (syscall(SYS_linkat, at, path, AT_FDCWD, grave, 0) || !(one->directory = inode(AT_FDCWD, parent, &st))) {
        free(one);
        goto done;
    }
    one->next = dug;
    dug = one;
done:
    errno = saved;
}

/* The names lost in a directory before ``upto`` are lost for good. */
static void forget_graves(uint64_t directory, uint64_t upto)
{
    struct grave **at = &dug, *one;
    char grave[PATH_MAX + 32];
    pthread_mutex_lock(&names);
    while ((one = *at)) {
        if (one->directory == directory && one->number < upto) {
            snprintf(grave, sizeof grave, "%s/%016lx", graves, (unsigned long)one->number);
            syscall(SYS_unlinkat, AT_FDCWD, grave, 0);
            *at = one->next;
            free(one);
        } else {
            at = &one->next;
        }
    }
    pthread_mutex_unlock(&names);
}

/* ---- data ---- */

static void overwritten(uint32_t kind, int fd, const struct stat *st, int64_t offset, int64_t length, int64_t from,
                        int64_t upto)
{
    char *before = NULL;
    int64_t have = 0;
    ssize_t n;
    if (upto > st->st_size)
        upto = st->st_size;
    if (from < upto) {
        before = malloc((size_t)(upto - from));
        if (!before)
            abort();
        /* A descriptor opened for writing alone cannot be read from. */
        int reader = fd, other = -1;
        char link[64];
        if ((fcntl(fd, F_GETFL) & O_ACCMODE) == O_WRONLY) {
            snprintf(link, sizeof link, "/proc/self/fd/%d", fd);
            reader = other = (int)syscall(SYS_openat, AT_FDCWD, link, O_RDONLY | O_CLOEXEC, 0);
        }
        while (have < upto - from &&
               (n = syscall(SYS_pread64, reader, before + have, upto - from - have, from + have)) > 0)
            have += n;
        if (other >= 0)
            syscall(SYS_close, other);
    }
    note(kind, st->st_ino, 0, offset, length, st->st_size, before, (size_t)have);
    free(before);
}

static void writes(int fd, int64_t offset, int64_t length)
{
    struct stat st;
    int saved = errno;
    if (length > 0 && ours(fd, &st)) {
        int appending = fcntl(fd, F_GETFL) & O_APPEND;
        if (appending)
            offset = st.st_size;
        else if (offset < 0)
            offset = lseek(fd, 0, SEEK_CUR);
        overwritten(WRITE, fd, &st, offset, length, offset, offset + length);
    }
    errno = saved;
}

static int64_t total(const struct iovec *parts, int count)
{
    int64_t sum = 0;
    for (int i = 0; i < count; i++)
        sum += (int64_t)parts[i].iov_len;
    return sum;
}

ssize_t write(int fd, const void *data, size_t n)
{
    writes(fd, -1, (int64_t)n);
    return syscall(SYS_write, fd, data, n);
}

ssize_t pwrite(int fd, const void *data, size_t n, off_t at)
{
    writes(fd, at, (int64_t)n);
    return syscall(SYS_pwrite64, fd, data, n, at);
}

ssize_t pwrite64(int fd, const void *data, size_t n, off64_t at)
{
    writes(fd, at, (int64_t)n);
    return syscall(SYS_pwrite64, fd, data, n, at);
}

ssize_t writev(int fd, const struct iovec *parts, int count)
{
    writes(fd, -1, total(parts, count));
    return syscall(SYS_writev, fd, parts, count);
}

ssize_t pwritev(int fd, const struct iovec *parts, int count, off_t at)
{
    writes(fd, at, total(parts, count));
    return syscall(SYS_pwritev, fd, parts, count, at, 0L);
}

ssize_t pwritev64(int fd, const struct iovec *parts, int count, off64_t at)
{
    writes(fd, at, total(parts, count));
    return syscall(SYS_pwritev, fd, parts, count, at, 0L);
}

ssize_t pwritev2(int fd, const struct iovec *parts, int count, off_t at, int flags)
{
    writes(fd, at, total(parts, count));
    return syscall(SYS_pwritev2, fd, parts, count, at, 0L, flags);
}

ssize_t pwritev64v2(int fd, const struct iovec *parts, int count, off64_t at, int flags)
{
    writes(fd, at, total(parts, count));
    return syscall(SYS_pwritev2, fd, parts, count, at, 0L, flags);
}

ssize_t sendfile(int to, int from, off_t *at, size_t n)
{
    writes(to, -1, (int64_t)n);
    return syscall(SYS_sendfile, to, from, at, n);
}

ssize_t sendfile64(int to, int from, off64_t *at, size_t n)
{
    writes(to, -1, (int64_t)n);
    return syscall(SYS_sendfile, to, from, at, n);
}

ssize_t copy_file_range(int from, off64_t *at, int to, off64_t *where, size_t n, unsigned flags)
{
    writes(to, where ? *where : -1, (int64_t)n);
    return syscall(SYS_copy_file_range, from, at, to, where, n, flags);
}

static void cuts(int fd, int64_t size)
{
    struct stat st;
    int saved = errno;
    if (ours(fd, &st))
        overwritten(TRUNCATE, fd, &st, size, 0, size, st.st_size);
    errno = saved;
}

static void cuts_path(const char *path, int64_t size)
{
    int fd = (int)syscall(SYS_openat, AT_FDCWD, path, O_RDONLY | O_CLOEXEC, 0);
    if (fd >= 0) {
        cuts(fd, size);
        syscall(SYS_close, fd);
    }
}

int ftruncate(int fd, off_t size)
{
    cuts(fd, size);
    return (int)syscall(SYS_ftruncate, fd, size);
}

int ftruncate64(int fd, off64_t size)
{
    cuts(fd, size);
    return (int)syscall(SYS_ftruncate, fd, size);
}

int truncate(const char *path, off_t size)
{
    cuts_path(path, size);
    return (int)syscall(SYS_truncate, path, size);
}

int truncate64(const char *path, off64_t size)
{
    cuts_path(path, size);
    return (int)syscall(SYS_truncate, path, size);
}

/* Holes and zeros are overwriting; what only reserves room is nothing that could be lost. */
static void reserves(int fd, int mode, int64_t offset, int64_t length)
{
    if (mode == 0 || mode & ~FALLOC_FL_KEEP_SIZE)
        writes(fd, offset, length);
}

int fallocate(int fd, int mode, off_t offset, off_t length)
{
    reserves(fd, mode, offset, length);
    return (int)syscall(SYS_fallocate, fd, mode, offset, length);
}

int fallocate64(int fd, int mode, off64_t offset, off64_t length)
{
    reserves(fd, mode, offset, length);
    return (int)syscall(SYS_fallocate, fd, mode, offset, length);
}

int posix_fallocate(int fd, off_t offset, off_t length)
{
    reserves(fd, 0, offset, length);
    return syscall(SYS_fallocate, fd, 0, offset, length) ? errno : 0;
}

int posix_fallocate64(int fd, off64_t offset, off64_t length)
{
    reserves(fd, 0, offset, length);
    return syscall(SYS_fallocate, fd, 0, offset, length) ? errno : 0;
}

static void maps(int fd, int protection, int flags)
{
    struct stat st;
    if (protection & PROT_WRITE && flags & MAP_SHARED && !(flags & MAP_ANONYMOUS) && ours(fd, &st))
        note(MAPPED, st.st_ino, 0, 0, 0, st.st_size, NULL, 0);
}

void *mmap(void *at, size_t n, int protection, int flags, int fd, off_t offset)
{
    maps(fd, protection, flags);
    return (void *)syscall(SYS_mmap, at, n, protection, flags, fd, offset);
}

void *mmap64(void *at, size_t n, int protection, int flags, int fd, off64_t offset)
{
    maps(fd, protection, flags);
    return (void *)syscall(SYS_mmap, at, n, protection, flags, fd, offset);
}

/* ---- syncing ---- */

static long slow_ms(void)
{
    char text[24];
    ssize_t got;
    int fd = (int)syscall(SYS_openat, AT_FDCWD, slow, O_RDONLY | O_CLOEXEC);
    if (fd < 0)
        return 0;
    got = (ssize_t)syscall(SYS_read, fd, text, sizeof text - 1);
    syscall(SYS_close, fd);
    text[got < 0 ? 0 : got] = 0;
    return atol(text);
}

static void be_slow(void)
{
    const struct timespec step = {0, 20 * 1000 * 1000};
    int kept = errno;
    for (long waited = 0; waited < slow_ms(); waited += 20)
        nanosleep(&step, NULL);
    errno = kept;
}

static int synced(int fd, long how)
{
    struct stat st;
    uint64_t token;
    int failed;
    if (!ours(fd, &st))
        return (int)syscall(how, fd);
    pthread_mutex_lock(&names);
    token = __atomic_add_fetch(&tokens, 1, __ATOMIC_RELAXED);
    note(SYNC_BEGIN, st.st_ino, token, 0, 0, st.st_size, NULL, 0);
    pthread_mutex_unlock(&names);
    be_slow();
    failed = skip_sync ? 0 : (int)syscall(how, fd);
    if (!failed && !lies) {
        note(SYNC_END, st.st_ino, token, 0, 0, 0, NULL, 0);
        if (S_ISDIR(st.st_mode))
            forget_graves((uint64_t)st.st_ino, token);
    }
    return failed;
}

int fsync(int fd) { return synced(fd, SYS_fsync); }
int fdatasync(int fd) { return synced(fd, SYS_fdatasync); }

/* ---- names ---- */

static int opened(int at, const char *path, int flags, mode_t mode)
{
    char name[PATH_MAX];
    const char *said = (flags & (O_CREAT | O_TRUNC)) ? relative(at, path, name) : NULL;
    struct stat st;
    int fd, was;
    if (!said)
        return (int)syscall(SYS_openat, at, path, flags, mode);
    pthread_mutex_lock(&names);
    was = !fstatat(at, path, &st, 0);
    if (was && flags & O_TRUNC && S_ISREG(st.st_mode) && st.st_size > 0) {
        int reader = (int)syscall(SYS_openat, at, path, O_RDONLY | O_CLOEXEC, 0);
        if (reader >= 0) {
            cuts(reader, 0);
            syscall(SYS_close, reader);
        }
    }
    fd = (int)syscall(SYS_openat, at, path, flags, mode);
    if (fd >= 0 && !was) {
        int saved = errno;
        if (!fstat(fd, &st) && S_ISREG(st.st_mode)) {
            note(CREATE, st.st_ino, 0, 0, 0, 0, name, strlen(name));
            if (fd < FDS)
                known[fd] = (uint64_t)st.st_ino << 1 | 1;
        }
        errno = saved;
    }
    pthread_mutex_unlock(&names);
    return fd;
}

#define MODE(flags, mode)                                                                                              \
    if ((flags) & O_CREAT || ((flags) & O_TMPFILE) == O_TMPFILE) {                                                     \
        va_list rest;                                                                                                  \
        va_start(rest, flags);                                                                                         \
        mode = va_arg(rest, mode_t);                                                                                   \
        va_end(rest);                                                                                                  \
    }

int open(const char *path, int flags, ...)
{
    mode_t mode = 0;
    MODE(flags, mode)
    return opened(AT_FDCWD, path, flags, mode);
}

int open64(const char *path, int flags, ...)
{
    mode_t mode = 0;
    MODE(flags, mode)
    return opened(AT_FDCWD, path, flags, mode);
}

int openat(int at, const char *path, int flags, ...)
{
    mode_t mode = 0;
    MODE(flags, mode)
    return opened(at, path, flags, mode);
}

int openat64(int at, const char *path, int flags, ...)
{
    mode_t mode = 0;
    MODE(flags, mode)
    return opened(at, path, flags, mode);
}

int __open_2(const char *path, int flags) { return opened(AT_FDCWD, path, flags, 0); }
int __open64_2(const char *path, int flags) { return opened(AT_FDCWD, path, flags, 0); }
int __openat_2(int at, const char *path, int flags) { return opened(at, path, flags, 0); }
int __openat64_2(int at, const char *path, int flags) { return opened(at, path, flags, 0); }
int creat(const char *path, mode_t mode) { return opened(AT_FDCWD, path, O_CREAT | O_WRONLY | O_TRUNC, mode); }
int creat64(const char *path, mode_t mode) { return opened(AT_FDCWD, path, O_CREAT | O_WRONLY | O_TRUNC, mode); }

static FILE *streamed(const char *path, const char *how, opener *real)
{
    char name[PATH_MAX];
    const char *said = strpbrk(how, "wa+") ? relative(AT_FDCWD, path, name) : NULL;
    struct stat st;
    FILE *file;
    int was;
    if (!said)
        return real(path, how);
    pthread_mutex_lock(&names);
    was = !stat(path, &st);
    file = real(path, how);
    if (file && !fstat(fileno(file), &st)) {
        if (!was)
            note(CREATE, st.st_ino, 0, 0, 0, 0, name, strlen(name));
        note(LOOSE, st.st_ino, 0, 0, 0, 0, NULL, 0);
    }
    pthread_mutex_unlock(&names);
    return file;
}

FILE *fopen(const char *path, const char *how) { return streamed(path, how, next_of("fopen")); }
FILE *fopen64(const char *path, const char *how) { return streamed(path, how, next_of("fopen64")); }

static int unlinked(int at, const char *path, int flags)
{
    char name[PATH_MAX];
    const char *said = relative(at, path, name);
    int failed;
    if (!said)
        return (int)syscall(SYS_unlinkat, at, path, flags);
    pthread_mutex_lock(&names);
    if (!(flags & AT_REMOVEDIR))
        bury(at, path, name);
    failed = (int)syscall(SYS_unlinkat, at, path, flags);
    if (!failed)
        note(flags & AT_REMOVEDIR ? RMDIR : UNLINK, 0, 0, 0, 0, 0, name, strlen(name));
    pthread_mutex_unlock(&names);
    return failed;
}

int unlink(const char *path) { return unlinked(AT_FDCWD, path, 0); }
int rmdir(const char *path) { return unlinked(AT_FDCWD, path, AT_REMOVEDIR); }
int unlinkat(int at, const char *path, int flags) { return unlinked(at, path, flags); }

int remove(const char *path)
{
    struct stat st;
    return unlinked(AT_FDCWD, path, !lstat(path, &st) && S_ISDIR(st.st_mode) ? AT_REMOVEDIR : 0);
}

static int made(int at, const char *path, mode_t mode)
{
    char name[PATH_MAX];
    const char *said = relative(at, path, name);
    struct stat st;
    int failed;
    if (!said)
        return (int)syscall(SYS_mkdirat, at, path, mode);
    pthread_mutex_lock(&names);
    failed = (int)syscall(SYS_mkdirat, at, path, mode);
    if (!failed)
        note(MKDIR, inode(at, path, &st), 0, 0, 0, 0, name, strlen(name));
    pthread_mutex_unlock(&names);
    return failed;
}

int mkdir(const char *path, mode_t mode) { return made(AT_FDCWD, path, mode); }
int mkdirat(int at, const char *path, mode_t mode) { return made(at, path, mode); }

/* Two names in one record, with a zero byte between them; one that is not below the root is empty. */
static int moved(uint32_t kind, int from_at, const char *from, int to_at, const char *to, unsigned flags)
{
    char old[PATH_MAX] = "", new[PATH_MAX] = "", both[2 * PATH_MAX];
    const char *a = relative(from_at, from, old), *b = relative(to_at, to, new);
    struct stat st, other;
    size_t n;
    int failed, same;
    if (!a && !b)
        return (int)(kind == RENAME ? syscall(SYS_renameat2, from_at, from, to_at, to, flags)
                                    : syscall(SYS_linkat, from_at, from, to_at, to, flags));
    if (!a)
        old[0] = 0;
    if (!b)
        new[0] = 0;
    pthread_mutex_lock(&names);
    same = inode(from_at, from, &st) == inode(to_at, to, &other);
    if (kind == RENAME && b && !same)
        bury(to_at, to, new);
    failed = (int)(kind == RENAME ? syscall(SYS_renameat2, from_at, from, to_at, to, flags)
                                  : syscall(SYS_linkat, from_at, from, to_at, to, flags));
    if (!failed && !same) {
        n = strlen(old) + 1;
        memcpy(both, old, n);
        memcpy(both + n, new, strlen(new));
        note(kind, inode(to_at, to, &st), 0, 0, 0, 0, both, n + strlen(new));
    }
    pthread_mutex_unlock(&names);
    return failed;
}

int rename(const char *from, const char *to) { return moved(RENAME, AT_FDCWD, from, AT_FDCWD, to, 0); }

int renameat(int from_at, const char *from, int to_at, const char *to)
{
    return moved(RENAME, from_at, from, to_at, to, 0);
}

int renameat2(int from_at, const char *from, int to_at, const char *to, unsigned flags)
{
    return moved(RENAME, from_at, from, to_at, to, flags);
}

int link(const char *from, const char *to) { return moved(LINK, AT_FDCWD, from, AT_FDCWD, to, 0); }

int linkat(int from_at, const char *from, int to_at, const char *to, int flags)
{
    return moved(LINK, from_at, from, to_at, to, (unsigned)flags);
}
