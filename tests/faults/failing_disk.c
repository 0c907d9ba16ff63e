/* Makes the disk refuse, for tests: preloaded, it stands between a program and the C library's calls that change files.

   fault_arm(prefix, nth, number, sticky): from the nth changing call on paths below `prefix` on, fail with errno
   `number`; once, or with `sticky` for ever. Below 0, `number` is a signal that the process gets instead, with the
   sign turned. nth 0 only counts. fault_count(): calls since it was armed. */
#define _GNU_SOURCE
#include <dlfcn.h>
#include <errno.h>
#include <fcntl.h>
#include <signal.h>
#include <stdarg.h>
#include <stdio.h>
#include <string.h>
#include <sys/types.h>
#include <unistd.h>

static char prefix[4096];
static size_t prefix_length;
static long nth, seen;
static int number, sticky, armed;

void fault_arm(const char *where, long which, int error, int for_ever) {
    strncpy(prefix, where, sizeof prefix - 1);
    prefix_length = strlen(prefix);
    nth = which, number = error, sticky = for_ever, seen = 0, armed = 1;
}

long fault_count(void) { return seen; }

static int is_below(const char *path) {
    return path && prefix_length && strncmp(path, prefix, prefix_length) == 0;
}

static int refuses(const char *path) {
    if (!armed || !is_below(path)) return 0;
    long now = __sync_add_and_fetch(&seen, 1);
    if (!nth || (sticky ? now < nth : now != nth)) return 0;
    if (number < 0) {  /* what is not ended by it goes on, and the call is made */
        kill(getpid(), -number);
        return 0;
    }
    errno = number;
    return 1;
}

static int descriptor_refuses(int descriptor) {
    if (!armed) return 0;
    char link[64], path[4096];
    snprintf(link, sizeof link, "/proc/self/fd/%d", descriptor);
    ssize_t length = readlink(link, path, sizeof path - 1);
    if (length < 0) return 0;
    path[length] = 0;
    return refuses(path);
}

#define NEXT(name) ({ static __typeof__(&name) next; if (!next) next = (__typeof__(&name))dlsym(RTLD_NEXT, #name); next; })
#define CHANGES(flags) ((flags) & (O_WRONLY | O_RDWR | O_CREAT | O_TRUNC))
#define OPEN(name)                                                                          \
    int name(const char *path, int flags, ...) {                                            \
        va_list rest; va_start(rest, flags); mode_t mode = va_arg(rest, mode_t); va_end(rest); \
        return CHANGES(flags) && refuses(path) ? -1 : NEXT(name)(path, flags, mode);         \
    }
OPEN(open)
OPEN(open64)
#define OPENAT(name)                                                                        \
    int name(int folder, const char *path, int flags, ...) {                                \
        va_list rest; va_start(rest, flags); mode_t mode = va_arg(rest, mode_t); va_end(rest); \
        return CHANGES(flags) && refuses(path) ? -1 : NEXT(name)(folder, path, flags, mode); \
    }
OPENAT(openat)
OPENAT(openat64)

ssize_t write(int descriptor, const void *content, size_t size) {
    return descriptor_refuses(descriptor) ? -1 : NEXT(write)(descriptor, content, size);
}
int fsync(int descriptor) { return descriptor_refuses(descriptor) ? -1 : NEXT(fsync)(descriptor); }
int mkdir(const char *path, mode_t mode) { return refuses(path) ? -1 : NEXT(mkdir)(path, mode); }
int rename(const char *from, const char *to) { return refuses(to) ? -1 : NEXT(rename)(from, to); }
int link(const char *from, const char *to) { return refuses(to) ? -1 : NEXT(link)(from, to); }
