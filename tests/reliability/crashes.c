// Ends a process with SIGKILL right after the n-th change that it makes below a folder.
// Loaded with LD_PRELOAD: Rust's and C++'s writers (Parquet, safetensors, torch.save) are seen as Python's are.
#define _GNU_SOURCE
#include <dlfcn.h>
#include <fcntl.h>
#include <limits.h>
#include <signal.h>
#include <stdarg.h>
#include <stdio.h>
#include <string.h>
#include <sys/sendfile.h>
#include <sys/stat.h>
#include <sys/uio.h>
#include <unistd.h>

static char below[PATH_MAX];
static long deadly, changes;
static int list = -1;
static __thread char seen[PATH_MAX];

// Change number 0 kills nothing. All changes are written to the file descriptor `to`, unless it is -1.
void crash_at(const char *folder, long change, int to) {
    strcpy(below, folder);
    deadly = change;
    list = to;
    changes = 0;
}

static int starts(const char *path) {
    size_t size = strlen(below);
    return size && !strncmp(path, below, size) && strcpy(seen, path[size] ? path + size + 1 : "");
}

static int is_in(int fd) {
    char link[40], path[PATH_MAX];
    if (!below[0]) return 0;
    snprintf(link, sizeof link, "/proc/self/fd/%d", fd);
    ssize_t size = readlink(link, path, sizeof path - 1);
    path[size < 0 ? 0 : size] = 0;
    return starts(path);
}

static int at(int folder, const char *path) {
    if (path[0] == '/' || !below[0]) return starts(path);
    return is_in(folder) && strcat(strcat(seen, "/"), path);
}

static void changed(const char *how) {
    if (list >= 0) dprintf(list, "%s %s\n", how, seen);
    if (__atomic_add_fetch(&changes, 1, __ATOMIC_SEQ_CST) == deadly) kill(getpid(), SIGKILL);
}

#define WATCH(type, name, failed, parameters, arguments, ours)     \
    type name parameters {                                         \
        static type(*real) parameters;                             \
        if (!real) *(void **)&real = dlsym(RTLD_NEXT, #name);      \
        int watched = ours;                                        \
        type result = real arguments;                              \
        if (watched && result != (type)failed) changed(#name);     \
        return result;                                             \
    }

WATCH(ssize_t, write, -1, (int fd, const void *data, size_t size), (fd, data, size), is_in(fd))
WATCH(ssize_t, writev, -1, (int fd, const struct iovec *data, int count), (fd, data, count), is_in(fd))
WATCH(ssize_t, pwrite, -1, (int fd, const void *data, size_t size, off_t start), (fd, data, size, start), is_in(fd))
WATCH(ssize_t, pwrite64, -1, (int fd, const void *data, size_t size, off64_t start), (fd, data, size, start), is_in(fd))
WATCH(ssize_t, sendfile, -1, (int to, int from, off_t *start, size_t size), (to, from, start, size), is_in(to))
WATCH(ssize_t, sendfile64, -1, (int to, int from, off64_t *start, size_t size), (to, from, start, size), is_in(to))
WATCH(int, ftruncate, -1, (int fd, off_t size), (fd, size), is_in(fd))
WATCH(int, ftruncate64, -1, (int fd, off64_t size), (fd, size), is_in(fd))
WATCH(int, fsync, -1, (int fd), (fd), is_in(fd))
WATCH(int, fdatasync, -1, (int fd), (fd), is_in(fd))
WATCH(int, rename, -1, (const char *from, const char *to), (from, to), starts(to))
WATCH(int, renameat, -1, (int a, const char *from, int b, const char *to), (a, from, b, to), at(b, to))
WATCH(int, unlink, -1, (const char *path), (path), starts(path))
WATCH(int, unlinkat, -1, (int folder, const char *path, int flags), (folder, path, flags), at(folder, path))
WATCH(int, rmdir, -1, (const char *path), (path), starts(path))
WATCH(int, mkdir, -1, (const char *path, mode_t mode), (path, mode), starts(path))
WATCH(FILE *, fopen, 0, (const char *path, const char *mode), (path, mode), mode[0] != 'r' && starts(path))
WATCH(FILE *, fopen64, 0, (const char *path, const char *mode), (path, mode), mode[0] != 'r' && starts(path))

#define WATCH_OPEN(name, types, values, ours, ...)                                    \
    int name(__VA_ARGS__, int flags, ...) {                                           \
        int (*real)(types, int, ...) = (int (*)(types, int, ...))dlsym(RTLD_NEXT, #name); \
        va_list rest;                                                                 \
        va_start(rest, flags);                                                        \
        int mode = va_arg(rest, int);                                                 \
        va_end(rest);                                                                 \
        int watched = flags & (O_CREAT | O_TRUNC) && ours;                            \
        int fd = real(values, flags, mode);                                           \
        if (watched && fd >= 0) changed(#name);                                       \
        return fd;                                                                    \
    }
#define PAIR(a, b) a, b

WATCH_OPEN(open, const char *, path, starts(path), const char *path)
WATCH_OPEN(open64, const char *, path, starts(path), const char *path)
WATCH_OPEN(openat, PAIR(int, const char *), PAIR(folder, path), at(folder, path), int folder, const char *path)
WATCH_OPEN(openat64, PAIR(int, const char *), PAIR(folder, path), at(folder, path), int folder, const char *path)
