/* SPDX-License-Identifier: MIT OR Apache-2.0 */
/*
 * A QEMU-like coroutine host to test qcow2cache with: stackful coroutines, one event loop context per thread, a fair
 * coroutine mutex, a virtual clock that can stand still, poll-while with kick, storage that yields in mid-request, and
 * the q2c_host vtable over all of it.
 *
 * It is strict: what QEMU asserts, it asserts, by one line on stderr ("testhost: ...") and abort(). A coroutine entered
 * twice, woken while it is not parked, woken twice, a timer used outside its thread: each is the caller's bug.
 *
 * Words: *plain code* is code outside any coroutine. The *home* of a coroutine is the context whose thread entered it
 * last. *Parked* means: suspended by the library, through the vtable's co_suspend; a coroutine that yielded for a reason of
 * the host's own (its mutex, its storage) is *yielded*, and the library has no business waking it.
 */
#ifndef TESTHOST_H
#define TESTHOST_H
#include <pthread.h>
#include <stdbool.h>
#include <stddef.h>
#include <stdint.h>

#include "qcow2cache.h"

typedef struct host_co host_co;                 /* a coroutine, or a thread's leader */
typedef struct host_program host_program;       /* contexts, clock, graph lock: what a QEMU process has one of */
typedef struct host_context host_context;       /* the event loop of one thread */
typedef struct host_iothread host_iothread;     /* a thread that does nothing but run its context */
typedef struct host_timer host_timer;
typedef struct host_adapter host_adapter;             /* what the library's q2c_host callbacks get as opaque */
typedef struct host_storage host_storage;

typedef void host_fn(void *arg);

/* Prints "testhost: <message>" to stderr and aborts. Any thread. */
_Noreturn void host_die(const char *format, ...) __attribute__((format(printf, 1, 2)));

/* So many rounds of a test that hammers, or fewer where a sanitizer or valgrind makes each one slow. */
unsigned host_scale_rounds(unsigned rounds);

/* ---- coroutine.c, stack.c: coroutines -------------------------------------------------------------------------- */

#define HOST_STACK_SIZE ((size_t)256 * 1024)
#define HOST_STACK_SIZE_SMALL ((size_t)32 * 1024)

/* Stack bytes of coroutines created from now on (a multiple of the page size); below each lies a guard page. Any thread. */
void host_co_set_stack_size(size_t bytes);
/* Fill new stacks with a pattern, so that host_co_stack_peak() can tell how deep they were used. Any thread. */
void host_co_measure_stacks(bool on);
/* The deepest use of a coroutine stack so far, in bytes, of coroutines that have ended since measuring was switched on. */
size_t host_co_stack_peak(void);
/* Whether that means anything: not with a sanitizer or valgrind, which use the stack, or not, in their own ways. */
bool host_co_can_measure(void);

/* A coroutine that will run entry(arg); it frees itself when entry returns. Pointers are recycled at once. Any thread. */
host_co *host_co_create(host_fn *entry, void *arg);
/* Run co, created or yielded, in this thread until it yields or ends. It becomes at home in this thread's context. */
void host_co_enter(host_co *co);
/* Give the thread back to who entered. In a coroutine. May return in another thread: keep nothing of the thread (a lock,
 * the address of errno or of another thread-local) across it. */
void host_co_yield(void);
/* As host_co_yield(); once the coroutine is off its stack, and may be entered by anybody, then(arg) is run in plain code
 * or in the coroutine that entered this one. */
void host_co_yield_then(host_fn *then, void *arg);
/* The running coroutine; in plain code the thread's leader, which is never NULL and can be neither entered nor woken. */
host_co *host_co_self(void);
bool host_in_coroutine(void);
/* The context co is at home in; NULL before it is entered first. Any thread. */
host_context *host_co_home(host_co *co);
/* How often a coroutine was switched to in this process: one wait and its end are one switch. Any thread. */
uint64_t host_co_switches(void);
/* Coroutines created and not yet ended, in the whole process. */
uint64_t host_co_alive(void);
/* Unmap the stacks of ended coroutines, forget the coroutines. No coroutine may be alive. */
void host_co_pool_drain(void);

/* Park the running coroutine on the library's behalf: only host_co_wake() ends it. */
void host_co_park(void);

/* What a wake, or a spawn, in the home thread does. From any other thread it is always queued in the home context. */
typedef enum host_run_mode {
    HOST_RUN_QUEUED,       /* the context's next round runs it */
    HOST_RUN_NOW,         /* run it inside the call, also from inside another coroutine */
    HOST_RUN_AFTER,       /* QEMU's way: plain code runs it inside the call, a coroutine when it yields or ends next */
    HOST_RUN_MODES
} host_run_mode;

/* Wake a parked coroutine, exactly once per host_co_park(). From another thread than its home it may come early, while the
 * coroutine is still running towards host_co_park(). Any thread. Returns true if it came early. */
bool host_co_wake(host_co *co, host_run_mode mode);

/* ---- context.c: event loops ------------------------------------------------------------------------------------ */

host_program *host_program_new(void);
/* Dies if a context of it is left. */
void host_program_free(host_program *program);

/* A context for the calling thread, which must not have one. The thread runs it by host_context_poll() or host_poll_while(). */
host_context *host_context_new(host_program *program);
/* Home thread; dies if something is left in it to run, or a timer. */
void host_context_free(host_context *context);
/* The calling thread's context, or NULL. */
host_context *host_context_current(void);
host_program *host_context_program(host_context *context);
/* Run what is ready; if nothing is, and wait is set, wait for it first. Plain code in the home thread. True: something
 * was run. */
bool host_context_poll(host_context *context, bool wait);

/* fn(arg) once, in plain code in the context's thread. Any thread. */
void host_bh_schedule(host_context *context, host_fn *fn, void *arg);
/* Enter co, created or yielded, in the context's thread. Any thread; dies if it is queued already. Unless the context is
 * its home, co must have yielded before (host_co_yield_then). */
void host_co_schedule(host_context *context, host_co *co);
/* Move the running coroutine to another context; returns there. */
void host_co_move(host_context *context);

/* A thread with a context of its own. */
host_iothread *host_iothread_new(host_program *program);
host_context *host_iothread_context(host_iothread *iothread);
/* Ask it to end when it has nothing ready to run, and join it. */
void host_iothread_free(host_iothread *iothread);

/* Run fn(arg) in the context's thread, in a coroutine or in plain code, and wait for its end. From plain code: turns the
 * calling thread's own context meanwhile (a thread without one blocks). Not from a coroutine. */
void host_context_call(host_context *context, bool in_coroutine, host_fn *fn, void *arg);

/* ---- poll.c: poll-while ---------------------------------------------------------------------------------------- */

/* Dispatch the calling thread's context until cond(arg) is false. Plain code, in a thread with a context, with the graph
 * not locked for writing. */
void host_poll_while(host_program *program, bool (*cond)(void *arg), void *arg);
/* Make every host_poll_while() of the program look at its condition again. Any thread. */
void host_kick(host_program *program);
/* While the graph is locked for writing host_poll_while() dies, in every thread, and the holder may not park. One holder. */
void host_graph_wrlock(host_program *program);
void host_graph_wrunlock(host_program *program);

/* ---- timer.c: clocks and timers -------------------------------------------------------------------------------- */

/* The program's virtual clock, ns. It begins at 1 s and runs. Any thread. */
int64_t host_clock_now(host_program *program);
void host_clock_stop(host_program *program);
void host_clock_resume(host_program *program);
/* Move a stopped clock by hand. */
void host_clock_step(host_program *program, uint64_t ns);
/* false: timers on the virtual clock never fire, whatever it says (command line tools are like that). Any thread. */
void host_clock_set_firing(host_program *program, bool firing);

/* A timer of the calling thread's context on the virtual clock, or on CLOCK_MONOTONIC if realtime. All timer functions:
 * in the context's thread only. cb runs in plain code. */
host_timer *host_timer_new(bool realtime, void (*cb)(void *arg), void *arg);
/* Due once at deadline (ns), in place of any earlier one. */
void host_timer_mod(host_timer *timer, int64_t deadline_ns);
void host_timer_del(host_timer *timer);
void host_timer_free(host_timer *timer);
/* Sleep in the running coroutine; resumes in the same context. */
void host_co_sleep_ns(bool realtime, int64_t ns);

/* ---- co_mutex.c: coroutine mutex and wait queue ---------------------------------------------------------------- */

typedef struct host_co_waiter { struct host_co_waiter *next; host_co *co; } host_co_waiter;
typedef struct host_co_queue { host_co_waiter *head, **tail; } host_co_queue;
typedef struct host_co_mutex {
    pthread_mutex_t guard;          /* held over a few instructions, never across a yield */
    host_co *owner;
    host_co_queue waiters;
} host_co_mutex;

/* Fair: handed to the coroutine that waits longest, which is then scheduled in its home context. Lock and unlock in a
 * coroutine, the same one; init and destroy anywhere. */
void host_co_mutex_init(host_co_mutex *mutex);
void host_co_mutex_destroy(host_co_mutex *mutex);
void host_co_mutex_lock(host_co_mutex *mutex);
void host_co_mutex_unlock(host_co_mutex *mutex);
bool host_co_mutex_held(host_co_mutex *mutex);

/* Waiters are protected by the mutex they wait with. */
void host_co_queue_init(host_co_queue *queue);
void host_co_queue_wait(host_co_queue *queue, host_co_mutex *mutex);
/* Wake the one that waits longest; false: there was none. */
bool host_co_queue_next(host_co_queue *queue);

/* ---- storage.c ------------------------------------------------------------------------------------------------- */

typedef enum host_resume {
    HOST_RESUME_INLINE,   /* requests are done in the call: nothing yields */
    HOST_RESUME_HOME,     /* the coroutine yields in mid-request and goes on at home */
    HOST_RESUME_WORKER,   /* it goes on in the worker that did the request */
    HOST_RESUME_SPREAD,   /* it goes on in one of the contexts given, in turn */
    HOST_RESUME_MIXED,    /* each of the above, by chance */
    HOST_RESUMES
} host_resume;

typedef struct host_storage_config {
    int fd;                         /* the image, if >= 0 (borrowed); else memory */
    size_t size;                    /* bytes of the image in memory, zero at first */
    host_resume resume;
    host_context *const *workers;     /* do the requests of coroutines; none: their own home does */
    size_t n_workers;
    host_context *const *spread;      /* for HOST_RESUME_SPREAD and MIXED */
    size_t n_spread;
    int64_t delay_ns;               /* real time per request of a coroutine */
    uint64_t seed;
} host_storage_config;

typedef struct host_storage_stats { uint64_t reads, writes, flushes, yields, moved; } host_storage_stats;

/* Plain code that calls the storage blocks until the request is done. Two requests in flight on the same bytes, one of
 * them a write, are the caller's bug and die. */
host_storage *host_storage_new(const host_storage_config *config);
/* Dies if a request is in flight. */
void host_storage_free(host_storage *storage);
/* Fill the library's callback table. pre_write_check and corruption are left NULL, max_iov 0. */
void host_storage_fill(host_storage *storage, q2c_storage *callbacks);
/* The image in memory (NULL on a file): look at it only while no request is in flight. */
void *host_storage_image(host_storage *storage);
/* From now on the n-th request (1 = the next) fails with -error, once; n = 0: none. Any thread. */
void host_storage_fail_at(host_storage *storage, uint64_t n, int error);
/* Hold requests: those that come stay in flight until the release. Any thread. */
void host_storage_hold(host_storage *storage);
void host_storage_release(host_storage *storage);
/* Requests held now. Any thread. */
size_t host_storage_held(host_storage *storage);
void host_storage_get_stats(host_storage *storage, host_storage_stats *stats);

/* ---- vtable.c -------------------------------------------------------------------------------------------------- */

typedef struct host_adapter_config {
    host_program *program;
    bool own_lock;                  /* hand the host's own mutex in (lock, unlock); else the library has its own */
    host_run_mode wake, spawn;
    bool late_kick_ok;              /* a kick may come after host_adapter_close(); else it dies as every call does */
} host_adapter_config;

typedef struct host_adapter_stats {
    uint64_t yields, wakes, early_wakes, spawns, locks, polls, kicks, timers, late_kicks;
    uint64_t timers_alive, parked, spawned_alive;
} host_adapter_stats;

host_adapter *host_adapter_new(const host_adapter_config *config);
/* The callback table, valid as long as the host. */
const q2c_host *host_adapter_vtable(host_adapter *host);
/* From now on no callback may come: each one dies. Dies at once if a coroutine is parked, a timer alive or the mutex held. */
void host_adapter_close(host_adapter *host);
/* Closes it, if that was not done, and waits for the coroutines it spawned to leave their stacks. Its memory goes with the
 * program, so that a late callback dies with a message. Plain code. */
void host_adapter_free(host_adapter *host);
/* The mutex behind lock/unlock, to be used by the test's own code as well. */
host_co_mutex *host_adapter_mutex(host_adapter *host);
/* The next co_spawn answers -error. Any thread. */
void host_adapter_fail_spawn(host_adapter *host, int error);
/* Call fn(arg, name) at the beginning of every callback, in its caller's context, with the callback's name ("co_suspend"...).
 * In co_suspend that is after the library announced that it parks and before it does: the window that early wakes hit.
 * fn may block, and may call what any callback may call. NULL: no more; a call in progress goes on. Any thread. */
typedef void host_on_call(void *arg, const char *callback);
void host_adapter_on_call(host_adapter *host, host_on_call *fn, void *arg);
void host_adapter_get_stats(host_adapter *host, host_adapter_stats *stats);

#endif
