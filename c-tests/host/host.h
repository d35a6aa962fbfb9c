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

typedef struct th_co th_co;                 /* a coroutine, or a thread's leader */
typedef struct th_program th_program;       /* contexts, clock, graph lock: what a QEMU process has one of */
typedef struct th_context th_context;       /* the event loop of one thread */
typedef struct th_iothread th_iothread;     /* a thread that does nothing but run its context */
typedef struct th_timer th_timer;
typedef struct th_host th_host;             /* what the library's q2c_host callbacks get as opaque */
typedef struct th_storage th_storage;

typedef void th_fn(void *arg);

/* Prints "testhost: <message>" to stderr and aborts. Any thread. */
_Noreturn void th_die(const char *format, ...) __attribute__((format(printf, 1, 2)));

/* So many rounds of a test that hammers, or fewer where a sanitizer or valgrind makes each one slow. */
unsigned th_rounds(unsigned rounds);

/* ---- coroutine.c, stack.c: coroutines -------------------------------------------------------------------------- */

#define TH_STACK_SIZE ((size_t)256 * 1024)
#define TH_STACK_SIZE_SMALL ((size_t)32 * 1024)

/* Stack bytes of coroutines created from now on (a multiple of the page size); below each lies a guard page. Any thread. */
void th_co_set_stack_size(size_t bytes);
/* Fill new stacks with a pattern, so that th_co_stack_peak() can tell how deep they were used. Any thread. */
void th_co_measure_stacks(bool on);
/* The deepest use of a coroutine stack so far, in bytes, of coroutines that have ended since measuring was switched on. */
size_t th_co_stack_peak(void);
/* Whether that means anything: not with a sanitizer or valgrind, which use the stack, or not, in their own ways. */
bool th_co_stacks_measurable(void);

/* A coroutine that will run entry(arg); it frees itself when entry returns. Pointers are recycled at once. Any thread. */
th_co *th_co_create(th_fn *entry, void *arg);
/* Run co, created or yielded, in this thread until it yields or ends. It becomes at home in this thread's context. */
void th_co_enter(th_co *co);
/* Give the thread back to who entered. In a coroutine. May return in another thread: keep nothing of the thread (a lock,
 * the address of errno or of another thread-local) across it. */
void th_co_yield(void);
/* As th_co_yield(); once the coroutine is off its stack, and may be entered by anybody, then(arg) is run in plain code
 * or in the coroutine that entered this one. */
void th_co_yield_then(th_fn *then, void *arg);
/* The running coroutine; in plain code the thread's leader, which is never NULL and can be neither entered nor woken. */
th_co *th_co_self(void);
bool th_in_coroutine(void);
/* The context co is at home in; NULL before it is entered first. Any thread. */
th_context *th_co_home(th_co *co);
/* How often a coroutine was switched to in this process: one wait and its end are one switch. Any thread. */
uint64_t th_co_switches(void);
/* Coroutines created and not yet ended, in the whole process. */
uint64_t th_co_alive(void);
/* Unmap the stacks of ended coroutines, forget the coroutines. No coroutine may be alive. */
void th_co_pool_drain(void);

/* Park the running coroutine on the library's behalf: only th_co_wake() ends it. */
void th_co_park(void);

/* What a wake, or a spawn, in the home thread does. From any other thread it is always queued in the home context. */
typedef enum th_mode {
    TH_QUEUE,       /* the context's next round runs it */
    TH_NOW,         /* run it inside the call, also from inside another coroutine */
    TH_AFTER,       /* QEMU's way: plain code runs it inside the call, a coroutine when it yields or ends next */
    TH_MODES
} th_mode;

/* Wake a parked coroutine, exactly once per th_co_park(). From another thread than its home it may come early, while the
 * coroutine is still running towards th_co_park(). Any thread. Returns true if it came early. */
bool th_co_wake(th_co *co, th_mode mode);

/* ---- context.c: event loops ------------------------------------------------------------------------------------ */

th_program *th_program_new(void);
/* Dies if a context of it is left. */
void th_program_free(th_program *program);

/* A context for the calling thread, which must not have one. The thread runs it by th_context_poll() or th_poll_while(). */
th_context *th_context_new(th_program *program);
/* Home thread; dies if something is left in it to run, or a timer. */
void th_context_free(th_context *context);
/* The calling thread's context, or NULL. */
th_context *th_context_current(void);
th_program *th_context_program(th_context *context);
/* Run what is ready; if nothing is, and wait is set, wait for it first. Plain code in the home thread. True: something
 * was run. */
bool th_context_poll(th_context *context, bool wait);

/* fn(arg) once, in plain code in the context's thread. Any thread. */
void th_bh_schedule(th_context *context, th_fn *fn, void *arg);
/* Enter co, created or yielded, in the context's thread. Any thread; dies if it is queued already. Unless the context is
 * its home, co must have yielded before (th_co_yield_then). */
void th_co_schedule(th_context *context, th_co *co);
/* Move the running coroutine to another context; returns there. */
void th_co_move(th_context *context);

/* A thread with a context of its own. */
th_iothread *th_iothread_new(th_program *program);
th_context *th_iothread_context(th_iothread *iothread);
/* Ask it to end when it has nothing ready to run, and join it. */
void th_iothread_free(th_iothread *iothread);

/* Run fn(arg) in the context's thread, in a coroutine or in plain code, and wait for its end. From plain code: turns the
 * calling thread's own context meanwhile (a thread without one blocks). Not from a coroutine. */
void th_call(th_context *context, bool in_coroutine, th_fn *fn, void *arg);

/* ---- poll.c: poll-while ---------------------------------------------------------------------------------------- */

/* Dispatch the calling thread's context until cond(arg) is false. Plain code, in a thread with a context, with the graph
 * not locked for writing. */
void th_poll_while(th_program *program, bool (*cond)(void *arg), void *arg);
/* Make every th_poll_while() of the program look at its condition again. Any thread. */
void th_kick(th_program *program);
/* While the graph is locked for writing th_poll_while() dies, in every thread, and the holder may not park. One holder. */
void th_graph_wrlock(th_program *program);
void th_graph_wrunlock(th_program *program);

/* ---- timer.c: clocks and timers -------------------------------------------------------------------------------- */

/* The program's virtual clock, ns. It begins at 1 s and runs. Any thread. */
int64_t th_clock_now(th_program *program);
void th_clock_stop(th_program *program);
void th_clock_resume(th_program *program);
/* Move a stopped clock by hand. */
void th_clock_step(th_program *program, uint64_t ns);
/* false: timers on the virtual clock never fire, whatever it says (command line tools are like that). Any thread. */
void th_clock_set_firing(th_program *program, bool firing);

/* A timer of the calling thread's context on the virtual clock, or on CLOCK_MONOTONIC if realtime. All timer functions:
 * in the context's thread only. cb runs in plain code. */
th_timer *th_timer_new(bool realtime, void (*cb)(void *arg), void *arg);
/* Due once at deadline (ns), in place of any earlier one. */
void th_timer_mod(th_timer *timer, int64_t deadline_ns);
void th_timer_del(th_timer *timer);
void th_timer_free(th_timer *timer);
/* Sleep in the running coroutine; resumes in the same context. */
void th_co_sleep_ns(bool realtime, int64_t ns);

/* ---- co_mutex.c: coroutine mutex and wait queue ---------------------------------------------------------------- */

typedef struct th_wait { struct th_wait *next; th_co *co; } th_wait;
typedef struct th_queue { th_wait *head, **tail; } th_queue;
typedef struct th_mutex {
    pthread_mutex_t guard;          /* held over a few instructions, never across a yield */
    th_co *owner;
    th_queue waiters;
} th_mutex;

/* Fair: handed to the coroutine that waits longest, which is then scheduled in its home context. Lock and unlock in a
 * coroutine, the same one; init and destroy anywhere. */
void th_mutex_init(th_mutex *mutex);
void th_mutex_destroy(th_mutex *mutex);
void th_mutex_lock(th_mutex *mutex);
void th_mutex_unlock(th_mutex *mutex);
bool th_mutex_held_by_me(th_mutex *mutex);

/* Waiters are protected by the mutex they wait with. */
void th_queue_init(th_queue *queue);
void th_queue_wait(th_queue *queue, th_mutex *mutex);
/* Wake the one that waits longest; false: there was none. */
bool th_queue_next(th_queue *queue);

/* ---- storage.c ------------------------------------------------------------------------------------------------- */

typedef enum th_resume {
    TH_RESUME_INLINE,   /* requests are done in the call: nothing yields */
    TH_RESUME_HOME,     /* the coroutine yields in mid-request and goes on at home */
    TH_RESUME_WORKER,   /* it goes on in the worker that did the request */
    TH_RESUME_SPREAD,   /* it goes on in one of the contexts given, in turn */
    TH_RESUME_MIXED,    /* each of the above, by chance */
    TH_RESUMES
} th_resume;

typedef struct th_storage_config {
    int fd;                         /* the image, if >= 0 (borrowed); else memory */
    size_t size;                    /* bytes of the image in memory, zero at first */
    th_resume resume;
    th_context *const *workers;     /* do the requests of coroutines; none: their own home does */
    size_t n_workers;
    th_context *const *spread;      /* for TH_RESUME_SPREAD and MIXED */
    size_t n_spread;
    int64_t delay_ns;               /* real time per request of a coroutine */
    uint64_t seed;
} th_storage_config;

typedef struct th_storage_stats { uint64_t reads, writes, flushes, yields, moved; } th_storage_stats;

/* Plain code that calls the storage blocks until the request is done. Two requests in flight on the same bytes, one of
 * them a write, are the caller's bug and die. */
th_storage *th_storage_new(const th_storage_config *config);
/* Dies if a request is in flight. */
void th_storage_free(th_storage *storage);
/* Fill the library's callback table. pre_write_check and corruption are left NULL, max_iov 0. */
void th_storage_fill(th_storage *storage, q2c_storage *callbacks);
/* The image in memory (NULL on a file): look at it only while no request is in flight. */
void *th_storage_image(th_storage *storage);
/* From now on the n-th request (1 = the next) fails with -error, once; n = 0: none. Any thread. */
void th_storage_fail_at(th_storage *storage, uint64_t n, int error);
/* Hold requests: those that come stay in flight until the release. Any thread. */
void th_storage_hold(th_storage *storage);
void th_storage_release(th_storage *storage);
/* Requests held now. Any thread. */
size_t th_storage_held(th_storage *storage);
void th_storage_get_stats(th_storage *storage, th_storage_stats *stats);

/* ---- vtable.c -------------------------------------------------------------------------------------------------- */

typedef struct th_host_config {
    th_program *program;
    bool own_lock;                  /* hand the host's own mutex in (lock, unlock); else the library has its own */
    th_mode wake, spawn;
    bool late_kick_ok;              /* a kick may come after th_host_close(); else it dies as every call does */
} th_host_config;

typedef struct th_host_stats {
    uint64_t yields, wakes, early_wakes, spawns, locks, polls, kicks, timers, late_kicks;
    uint64_t timers_alive, parked, spawned_alive;
} th_host_stats;

th_host *th_host_new(const th_host_config *config);
/* The callback table, valid as long as the host. */
const q2c_host *th_host_vtable(th_host *host);
/* From now on no callback may come: each one dies. Dies at once if a coroutine is parked, a timer alive or the mutex held. */
void th_host_close(th_host *host);
/* Closes it, if that was not done, and waits for the coroutines it spawned to leave their stacks. Its memory goes with the
 * program, so that a late callback dies with a message. Plain code. */
void th_host_free(th_host *host);
/* The mutex behind lock/unlock, to be used by the test's own code as well. */
th_mutex *th_host_mutex(th_host *host);
/* The next co_spawn answers -error. Any thread. */
void th_host_fail_spawn(th_host *host, int error);
/* Call fn(arg, name) at the beginning of every callback, in its caller's context, with the callback's name ("co_suspend"...).
 * In co_suspend that is after the library announced that it parks and before it does: the window that early wakes hit.
 * fn may block, and may call what any callback may call. NULL: no more; a call in progress goes on. Any thread. */
typedef void th_on_call(void *arg, const char *callback);
void th_host_on_call(th_host *host, th_on_call *fn, void *arg);
void th_host_get_stats(th_host *host, th_host_stats *stats);

#endif
