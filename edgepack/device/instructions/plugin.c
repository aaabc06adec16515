/* A TCG plugin for qemu's user mode that counts the instructions of marked regions, by kind.
 *
 * The program marks a region by two system calls that no program makes: close(BEGIN) and
 * close(END), which fail and do nothing. Only the thread that began a region is counted. qemu
 * translates blocks of instructions that always run together; each block knows how many it has of
 * every kind, and what is counted while the program runs is the blocks.
 *
 *     cc -O2 -shared -fPIC -DPLUGIN_VERSION=1 -o plugin.so plugin.c
 *     qemu-aarch64 -plugin file=plugin.so,out=FILE -cpu cortex-a53 PROGRAM
 *
 * FILE gets one line of JSON for each region: {"CLASS KIND": COUNT, ...}.
 *
 * Distributions ship no header of the plugin interface, so what is used of it is declared here.
 * PLUGIN_VERSION is 1 for qemu before 9.0, and 2 from then on.
 */
#include <inttypes.h>
#include <stdio.h>
#include <stdlib.h>

#include "classes.h"

#define EXPORT __attribute__((visibility("default")))

/* The start of what qemu tells a plugin of itself. */
struct info {
    const char *target_name;
    struct {
        int min, cur;
    } version;
};
struct tb;
struct insn;
typedef void translated(uint64_t id, struct tb *tb);
typedef void executed(unsigned vcpu, void *data);
typedef void called(uint64_t id, unsigned vcpu, int64_t number, uint64_t a1, uint64_t a2,
                    uint64_t a3, uint64_t a4, uint64_t a5, uint64_t a6, uint64_t a7, uint64_t a8);

void qemu_plugin_register_vcpu_tb_trans_cb(uint64_t id, translated *callback);
void qemu_plugin_register_vcpu_tb_exec_cb(struct tb *tb, executed *callback, int flags, void *data);
void qemu_plugin_register_vcpu_syscall_cb(uint64_t id, called *callback);
size_t qemu_plugin_tb_n_insns(const struct tb *tb);
struct insn *qemu_plugin_tb_get_insn(const struct tb *tb, size_t index);
size_t qemu_plugin_insn_size(const struct insn *insn);
/* Until version 2 it returned the bytes and took no more than the instruction. */
void *qemu_plugin_insn_data(const struct insn *insn, void *bytes, size_t size);

EXPORT int qemu_plugin_version = PLUGIN_VERSION;

enum { BEGIN = -0x45500001, END = -0x45500002 };
enum { NO_REGISTERS = 0, LONGEST = 16 };

struct block {
    struct block *next;
    uint64_t runs;
    uint16_t kinds[KINDS];
};

static struct block *blocks;
static int64_t counted = -1; /* the thread that is in a region */
static bool arm, copies;
static FILE *out;

static int kind_of(const struct insn *insn)
{
    uint8_t copy[LONGEST] = { 0 };
    size_t size = qemu_plugin_insn_size(insn);
    const uint8_t *bytes = copy;

    if (size > LONGEST)
        size = LONGEST;
    if (copies)
        qemu_plugin_insn_data(insn, copy, size);
    else
        bytes = qemu_plugin_insn_data(insn, NULL, 0);
    if (!arm)
        return kind_of_x86_64(bytes, size);
    /* Instructions of AArch64 are little-endian whatever its data is. */
    return kind_of_aarch64(bytes[0] | bytes[1] << 8 | bytes[2] << 16 | (uint32_t)bytes[3] << 24);
}

static void on_run(unsigned vcpu, void *data)
{
    if (vcpu == counted)
        ((struct block *)data)->runs++;
}

/* qemu translates for one thread at a time. */
static void on_translation(uint64_t id, struct tb *tb)
{
    struct block *block = calloc(1, sizeof *block);

    (void)id;
    if (!block)
        abort();
    for (size_t i = 0; i < qemu_plugin_tb_n_insns(tb); i++)
        block->kinds[kind_of(qemu_plugin_tb_get_insn(tb, i))]++;
    block->next = blocks;
    __atomic_store_n(&blocks, block, __ATOMIC_RELEASE);
    qemu_plugin_register_vcpu_tb_exec_cb(tb, on_run, NO_REGISTERS, block);
}

static void begin(unsigned vcpu)
{
    for (struct block *b = __atomic_load_n(&blocks, __ATOMIC_ACQUIRE); b; b = b->next)
        b->runs = 0;
    counted = vcpu;
}

static void end(void)
{
    uint64_t counts[KINDS] = { 0 };

    counted = -1;
    for (struct block *b = __atomic_load_n(&blocks, __ATOMIC_ACQUIRE); b; b = b->next)
        if (b->runs)
            for (int k = 0; k < KINDS; k++)
                counts[k] += b->runs * b->kinds[k];
    for (int k = 0; k < KINDS; k++)
        fprintf(out, "%s\"%s\": %" PRIu64, k ? ", " : "{", KIND_NAMES[k], counts[k]);
    fputs("}\n", out);
    fflush(out);
}

static void on_system_call(uint64_t id, unsigned vcpu, int64_t number, uint64_t a1, uint64_t a2,
                           uint64_t a3, uint64_t a4, uint64_t a5, uint64_t a6, uint64_t a7,
                           uint64_t a8)
{
    (void)id, (void)a2, (void)a3, (void)a4, (void)a5, (void)a6, (void)a7, (void)a8;
    if (number != (arm ? 57 : 3)) /* close */
        return;
    if ((int32_t)a1 == BEGIN)
        begin(vcpu);
    else if ((int32_t)a1 == END && vcpu == counted)
        end();
}

EXPORT int qemu_plugin_install(uint64_t id, const struct info *info, int argc, char **argv)
{
    arm = !strcmp(info->target_name, "aarch64");
    copies = info->version.cur >= 3;
    if (argc == 1 && !strncmp(argv[0], "out=", 4))
        out = fopen(argv[0] + 4, "w");
    if (!out) {
        fputs("the plugin takes out=FILE, a file that it can write\n", stderr);
        return 1;
    }
    qemu_plugin_register_vcpu_tb_trans_cb(id, on_translation);
    qemu_plugin_register_vcpu_syscall_cb(id, on_system_call);
    return 0;
}
