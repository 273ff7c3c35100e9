// Lets the wall clock of a process jump, once, at the n-th reading. Loaded with LD_PRELOAD, so that Rust and C++ see it.
#define _GNU_SOURCE
#include <dlfcn.h>
#include <sys/time.h>
#include <time.h>

static long readings, due, jump;

// Reading number 0 lets it jump at once.
void jump_at(long reading, long seconds) {
    readings = 0;
    due = reading;
    jump = seconds;
}

long clock_readings(void) { return readings; }

static long shift(void) { return __atomic_add_fetch(&readings, 1, __ATOMIC_SEQ_CST) > due ? jump : 0; }

int clock_gettime(clockid_t clock, struct timespec *now) {
    static int (*real)(clockid_t, struct timespec *);
    if (!real) *(void **)&real = dlsym(RTLD_NEXT, "clock_gettime");
    int failed = real(clock, now);
    if (!failed && (clock == CLOCK_REALTIME || clock == CLOCK_REALTIME_COARSE)) now->tv_sec += shift();
    return failed;
}

int gettimeofday(struct timeval *restrict now, void *restrict zone) {
    static int (*real)(struct timeval *, void *);
    if (!real) *(void **)&real = dlsym(RTLD_NEXT, "gettimeofday");
    int failed = real(now, zone);
    if (!failed) now->tv_sec += shift();
    return failed;
}

time_t time(time_t *there) {
    struct timespec now;
    clock_gettime(CLOCK_REALTIME, &now);
    if (there) *there = now.tv_sec;
    return now.tv_sec;
}
