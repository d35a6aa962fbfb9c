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

bool th_co_stacks_measurable(void)
{
    return !instrumented();
}

unsigned th_rounds(unsigned rounds)
{
    unsigned fewer = rounds / 10;

    if (!instrumented()) {
        return rounds;
    }
    return fewer ? fewer : 1;
}
