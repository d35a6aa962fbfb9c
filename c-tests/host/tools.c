/* SPDX-License-Identifier: MIT OR Apache-2.0 */
/* What the tests do otherwise under a sanitizer or valgrind. */
#include "fiber.h"

static bool instrumented(void)
{
#if defined(FIBER_ASAN) || defined(FIBER_TSAN)
    return true;
#elif defined(FIBER_VALGRIND)
    return RUNNING_ON_VALGRIND;
#else
    return false;
#endif
}

bool host_co_can_measure(void)
{
    return !instrumented();
}

unsigned host_scale_rounds(unsigned rounds)
{
    unsigned fewer = rounds / 10;

    if (!instrumented()) {
        return rounds;
    }
    return fewer ? fewer : 1;
}
