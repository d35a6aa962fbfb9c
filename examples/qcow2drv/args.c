/* SPDX-License-Identifier: MIT */
/* Command lines. */
#include <errno.h>
#include <stdarg.h>
#include <stdio.h>
#include <string.h>

#include "command.h"

void complain(const char *format, ...)
{
    va_list args;

    fputs("qcow2drv: ", stderr);
    va_start(args, format);
    vfprintf(stderr, format, args);
    va_end(args);
    fputc('\n', stderr);
}

static int parse_number(const char *what, const char *text, bool size, uint64_t min, uint64_t max,
                        uint64_t *to)
{
    uint64_t value;
    int r = size_parse(text, &value);

    if (r == 0 && !size && strspn(text, "0123456789") != strlen(text))
        r = -EINVAL;
    if (r == -EINVAL) {
        complain("%s: '%s' is not a %s", what, text,
                 size ? "size: digits, then K, M, G or T if wanted" : "number");
        return EXIT_USAGE;
    }
    if (r < 0 || value < min || (max != 0 && value > max)) {
        if (max != 0)
            complain("%s: %s is not between %llu and %llu", what, text, (unsigned long long)min,
                     (unsigned long long)max);
        else
            complain("%s: %s is out of range; the least is %llu", what, text,
                     (unsigned long long)min);
        return EXIT_USAGE;
    }
    *to = value;
    return EXIT_OK;
}

/* KEY=VALUE,KEY=VALUE with QEMU's names; limits are the library's to check. */
static int parse_cache(const char *text, q2c_options *options)
{
    const struct {
        const char *name;
        uint32_t bit;
        bool size;
        uint64_t *to;
    } keys[] = {
        { "cache-size", Q2C_OPTION_CACHE_SIZE, true, &options->cache_size },
        { "l2-cache-size", Q2C_OPTION_L2_CACHE_SIZE, true, &options->l2_cache_size },
        { "refcount-cache-size", Q2C_OPTION_REFCOUNT_CACHE_SIZE, true,
          &options->refcount_cache_size },
        { "l2-cache-entry-size", Q2C_OPTION_L2_CACHE_ENTRY_SIZE, true,
          &options->l2_cache_entry_size },
        { "cache-clean-interval", Q2C_OPTION_CACHE_CLEAN_INTERVAL, false,
          &options->cache_clean_interval },
    };
    const size_t n = sizeof(keys) / sizeof(keys[0]);

    while (*text) {
        size_t length = strcspn(text, ","), name = strcspn(text, "=,"), i = 0;
        char value[64];

        while (i < n && !(strlen(keys[i].name) == name && strncmp(keys[i].name, text, name) == 0))
            i++;
        if (i == n) {
            complain("-o: unknown option '%.*s'; known are cache-size, l2-cache-size, "
                     "refcount-cache-size, "
                     "l2-cache-entry-size and cache-clean-interval",
                     (int)name, text);
            return EXIT_USAGE;
        }
        if (name == length || length - name - 1 >= sizeof(value)) {
            complain("-o: '%.*s' wants a value: %s=%s", (int)length, text, keys[i].name,
                     keys[i].size ? "1M" : "600");
            return EXIT_USAGE;
        }
        memcpy(value, text + name + 1, length - name - 1);
        value[length - name - 1] = '\0';
        if (parse_number(keys[i].name, value, keys[i].size, 0, 0, keys[i].to) != EXIT_OK)
            return EXIT_USAGE;
        options->set |= keys[i].bit;
        text += length;
        text += *text == ',';
    }
    return EXIT_OK;
}

static int parse_mix(const char *name, const char *text, unsigned mix[4])
{
    unsigned value[4];
    char end;

    if (sscanf(text, "%3u:%3u:%3u:%3u%c", &value[0], &value[1], &value[2], &value[3], &end) != 4 ||
        value[0] + value[1] + value[2] + value[3] != 100) {
        complain("%s: '%s' is not four percentages READ:WRITE:DISCARD:ZERO that make 100, such as "
                 "50:30:10:10",
                 name, text);
        return EXIT_USAGE;
    }
    memcpy(mix, value, sizeof(value));
    return EXIT_OK;
}

static int parse_value(const cli_arg *a, const char *value)
{
    switch (a->kind) {
    case ARG_NUMBER:
        return parse_number(a->name, value, false, a->min, a->max, a->to);
    case ARG_SIZE:
        return parse_number(a->name, value, true, a->min, a->max, a->to);
    case ARG_STRING:
        *(const char **)a->to = value;
        return EXIT_OK;
    case ARG_CACHE:
        return parse_cache(value, a->to);
    case ARG_MIX:
        return parse_mix(a->name, value, a->to);
    case ARG_FLAG:
        break;
    }
    return EXIT_USAGE;
}

/* One option at argv[*i]; steps over its value if that is a word of its own. */
static int parse_option(const char *command, int argc, char **argv, int *i, const cli_arg *table)
{
    const char *word = argv[*i], *equals = strncmp(word, "--", 2) == 0 ? strchr(word, '=') : NULL;
    size_t length = equals ? (size_t)(equals - word) : strlen(word);
    const cli_arg *a = table;

    while (a->name && !(strlen(a->name) == length && strncmp(a->name, word, length) == 0))
        a++;
    if (!a->name) {
        complain("%s: unknown option '%.*s'; see 'qcow2drv %s --help'", command, (int)length, word,
                 command);
        return EXIT_USAGE;
    }
    if (a->kind == ARG_FLAG) {
        if (equals) {
            complain("%s: %s takes no value", command, a->name);
            return EXIT_USAGE;
        }
        *(bool *)a->to = true;
        return EXIT_OK;
    }
    if (equals)
        return parse_value(a, equals + 1);
    if (*i + 1 == argc) {
        complain("%s: %s wants a value; see 'qcow2drv %s --help'", command, a->name, command);
        return EXIT_USAGE;
    }
    return parse_value(a, argv[++*i]);
}

int args_parse(const char *command, int argc, char **argv, const cli_arg *table, const char **words,
               int wanted)
{
    bool options = true;
    int n = 0;

    for (int i = 0; i < argc; i++) {
        if (options && strcmp(argv[i], "--") == 0) {
            options = false;
        } else if (options && argv[i][0] == '-' && argv[i][1] != '\0') {
            if (parse_option(command, argc, argv, &i, table) != EXIT_OK)
                return EXIT_USAGE;
        } else if (n < wanted) {
            words[n++] = argv[i];
        } else {
            complain("%s: '%s' is one word too many; see 'qcow2drv %s --help'", command, argv[i],
                     command);
            return EXIT_USAGE;
        }
    }
    if (n < wanted) {
        complain("%s: wants %d word%s besides options, got %d; see 'qcow2drv %s --help'", command,
                 wanted, wanted == 1 ? "" : "s", n, command);
        return EXIT_USAGE;
    }
    return EXIT_OK;
}
