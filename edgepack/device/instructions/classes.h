/* Which class an instruction is of.
 *
 * Every instruction is of exactly one kind, and every kind of exactly one class, so the classes
 * add up to the total. The compute classes are told by kind, since the kinds show which kernel
 * ran. Encodings: Arm Architecture Reference Manual (DDI 0487), C4.1; Intel SDM, volume 2.
 */
#include <stdbool.h>
#include <stddef.h>
#include <stdint.h>
#include <string.h>

/* Class and kind. */
#define KINDS_OF_ALL(K)                                                                           \
    K(dot, sdot) K(dot, udot) K(dot, usdot) K(dot, sudot)           /* int8 dot products */       \
    K(dot, vpdpbusd) K(dot, vpdpwssd)                                                             \
    K(matrix, smmla) K(matrix, ummla) K(matrix, usmmla)             /* int8 matrix products */    \
    K(intmul, smlal) K(intmul, umlal) K(intmul, smlsl) K(intmul, umlsl) /* SIMD int products */   \
    K(intmul, smull) K(intmul, umull) K(intmul, mul) K(intmul, mla) K(intmul, mls)                \
    K(intmul, sqdmlal) K(intmul, sqdmlsl) K(intmul, sqdmull) K(intmul, sqdmulh)                   \
    K(intmul, sqrdmulh)                                                                           \
    K(intmul, pmaddubsw) K(intmul, pmaddwd) K(intmul, pmullw) K(intmul, pmulhw)                   \
    K(intmul, pmulhuw) K(intmul, pmulhrsw) K(intmul, pmulld) K(intmul, pmuldq)                    \
    K(intmul, pmuludq)                                                                            \
    K(fma, fmla) K(fma, fmls) K(fma, fmlal) K(fma, fmlsl) K(fma, fmadd) /* float products + sum */\
    K(fma, bfdot) K(fma, bfmmla) K(fma, bfmlal) K(fma, vfmadd)                                    \
    K(simd, other)      /* other SIMD and floating point */                                       \
    K(memory, other)    /* loads, stores and prefetches; on x86 moves from and to memory alone */ \
    K(branch, other)                                                                              \
    K(integer, other)   /* everything else */

#define AS_ENUM(class, kind) class##_##kind,
enum { KINDS_OF_ALL(AS_ENUM) KINDS };

#define AS_NAME(class, kind) #class " " #kind,
static const char *const KIND_NAMES[KINDS] = { KINDS_OF_ALL(AS_NAME) };

struct pattern {
    uint32_t mask, value;
    int kind;
};

/* Advanced SIMD: Q (bit 30) is free throughout, U is bit 29, the element's size bits 23 and 22. */
static const struct pattern SIMD_PATTERNS[] = {
    { 0xBFE0FC00, 0x0E809400, dot_sdot },      { 0xBFC0F400, 0x0F80E000, dot_sdot },
    { 0xBFE0FC00, 0x2E809400, dot_udot },      { 0xBFC0F400, 0x2F80E000, dot_udot },
    { 0xBFE0FC00, 0x0E809C00, dot_usdot },     { 0xBFC0F400, 0x0F80F000, dot_usdot },
    { 0xBFC0F400, 0x0F00F000, dot_sudot },
    { 0xFFE0FC00, 0x4E80A400, matrix_smmla },  { 0xFFE0FC00, 0x6E80A400, matrix_ummla },
    { 0xFFE0FC00, 0x4E80AC00, matrix_usmmla },
    /* Vectors of one length, of two, and by element, in that order. */
    { 0xBF20FC00, 0x0E209C00, intmul_mul },    { 0xBF00F400, 0x0F008000, intmul_mul },
    { 0xBF20FC00, 0x0E209400, intmul_mla },    { 0xBF00F400, 0x2F000000, intmul_mla },
    { 0xBF20FC00, 0x2E209400, intmul_mls },    { 0xBF00F400, 0x2F004000, intmul_mls },
    { 0xBF20FC00, 0x0E20B400, intmul_sqdmulh },  { 0xBF00F400, 0x0F00C000, intmul_sqdmulh },
    { 0xBF20FC00, 0x2E20B400, intmul_sqrdmulh }, { 0xBF00F400, 0x0F00D000, intmul_sqrdmulh },
    { 0xBF20FC00, 0x0E208000, intmul_smlal },  { 0xBF00F400, 0x0F002000, intmul_smlal },
    { 0xBF20FC00, 0x2E208000, intmul_umlal },  { 0xBF00F400, 0x2F002000, intmul_umlal },
    { 0xBF20FC00, 0x0E20A000, intmul_smlsl },  { 0xBF00F400, 0x0F006000, intmul_smlsl },
    { 0xBF20FC00, 0x2E20A000, intmul_umlsl },  { 0xBF00F400, 0x2F006000, intmul_umlsl },
    { 0xBF20FC00, 0x0E20C000, intmul_smull },  { 0xBF00F400, 0x0F00A000, intmul_smull },
    { 0xBF20FC00, 0x2E20C000, intmul_umull },  { 0xBF00F400, 0x2F00A000, intmul_umull },
    { 0xBF20FC00, 0x0E209000, intmul_sqdmlal }, { 0xBF00F400, 0x0F003000, intmul_sqdmlal },
    { 0xBF20FC00, 0x0E20B000, intmul_sqdmlsl }, { 0xBF00F400, 0x0F007000, intmul_sqdmlsl },
    { 0xBF20FC00, 0x0E20D000, intmul_sqdmull }, { 0xBF00F400, 0x0F00B000, intmul_sqdmull },
    /* Single and double, then half precision. */
    { 0xBFA0FC00, 0x0E20CC00, fma_fmla },      { 0xBFE0FC00, 0x0E400C00, fma_fmla },
    { 0xBF80F400, 0x0F801000, fma_fmla },      { 0xBFC0F400, 0x0F001000, fma_fmla },
    { 0xFF80F400, 0x5F801000, fma_fmla },      { 0xFFC0F400, 0x5F001000, fma_fmla },
    { 0xBFA0FC00, 0x0EA0CC00, fma_fmls },      { 0xBFE0FC00, 0x0EC00C00, fma_fmls },
    { 0xBF80F400, 0x0F805000, fma_fmls },      { 0xBFC0F400, 0x0F005000, fma_fmls },
    { 0xFF80F400, 0x5F805000, fma_fmls },      { 0xFFC0F400, 0x5F005000, fma_fmls },
    { 0xBFE0FC00, 0x0E20EC00, fma_fmlal },     { 0xBFE0FC00, 0x2E20CC00, fma_fmlal },
    { 0xBFC0F400, 0x0F800000, fma_fmlal },     { 0xBFC0F400, 0x2F808000, fma_fmlal },
    { 0xBFE0FC00, 0x0EA0EC00, fma_fmlsl },     { 0xBFE0FC00, 0x2EA0CC00, fma_fmlsl },
    { 0xBFC0F400, 0x0F804000, fma_fmlsl },     { 0xBFC0F400, 0x2F80C000, fma_fmlsl },
    { 0xFF000000, 0x1F000000, fma_fmadd },     /* and FMSUB, FNMADD, FNMSUB */
    { 0xBFE0FC00, 0x2E40FC00, fma_bfdot },     { 0xBFC0F400, 0x0F40F000, fma_bfdot },
    { 0xFFE0FC00, 0x6E40EC00, fma_bfmmla },
    { 0xBFE0FC00, 0x2EC0FC00, fma_bfmlal },    { 0xBFC0F400, 0x0FC0F000, fma_bfmlal },
};

static int kind_of_aarch64(uint32_t word)
{
    unsigned group = word >> 25 & 0xF;

    if ((group & 5) == 4)
        return memory_other;
    if ((group & 7) == 7) {
        for (size_t i = 0; i < sizeof SIMD_PATTERNS / sizeof *SIMD_PATTERNS; i++)
            if ((word & SIMD_PATTERNS[i].mask) == SIMD_PATTERNS[i].value)
                return SIMD_PATTERNS[i].kind;
        return simd_other;
    }
    if (group == 2) /* SVE */
        return simd_other;
    if ((word & 0x7C000000) == 0x14000000      /* B, BL */
        || (word & 0x7C000000) == 0x34000000   /* CBZ, CBNZ, TBZ, TBNZ */
        || (word & 0xFE000000) == 0x54000000   /* B.cond */
        || (word & 0xFE000000) == 0xD6000000)  /* BR, BLR, RET */
        return branch_other;
    return integer_other;
}

/* The parts of an x86-64 instruction that tell its kind. */
struct x86 {
    bool vex;               /* VEX or EVEX */
    enum { ONE_BYTE, MAP_0F, MAP_0F38, MAP_0F3A } map;
    enum { NONE, P66, PF3, PF2 } prefix;
    uint8_t opcode, modrm;
};

static bool in(uint8_t value, uint8_t first, uint8_t last)
{
    return first <= value && value <= last;
}

/* False where the bytes are none that this knows. */
static bool parse_x86(const uint8_t *bytes, size_t size, struct x86 *found)
{
    size_t i = 0;

    memset(found, 0, sizeof *found);
    for (; i < size; i++) {
        if (bytes[i] == 0x66 && found->prefix == NONE)
            found->prefix = P66;
        else if (bytes[i] == 0xF2 || bytes[i] == 0xF3)
            found->prefix = bytes[i] == 0xF2 ? PF2 : PF3;
        else if (!memchr("\x66\x67\xF0\x2E\x36\x3E\x26\x64\x65", bytes[i], 9))
            break;
    }
    if (i < size && in(bytes[i], 0x40, 0x4F)) /* REX */
        i++;
    if (i + 1 >= size) {
        if (i < size)
            found->opcode = bytes[i];
        return i < size;
    }
    uint8_t first = bytes[i], payload = bytes[i + 1];
    if (first == 0xC5) {
        found->vex = true;
        found->map = MAP_0F;
        found->prefix = payload & 3;
        i += 2;
    } else if (first == 0xC4 || first == 0x62) {
        if (i + 2 >= size || !in(payload & (first == 0xC4 ? 0x1F : 7), MAP_0F, MAP_0F3A))
            return false;
        found->vex = true;
        found->map = payload & 3;
        found->prefix = bytes[i + 2] & 3;
        i += first == 0xC4 ? 3 : 4;
    } else if (first == 0x0F && (payload == 0x38 || payload == 0x3A)) {
        found->map = payload == 0x38 ? MAP_0F38 : MAP_0F3A;
        i += 2;
    } else if (first == 0x0F) {
        found->map = MAP_0F;
        i += 1;
    }
    if (i >= size)
        return false;
    found->opcode = bytes[i];
    found->modrm = i + 1 < size ? bytes[i + 1] : 0;
    return true;
}

static int product_of_x86(const struct x86 *x)
{
    if (x->map == MAP_0F)
        switch (x->opcode) {
        case 0xF5: return intmul_pmaddwd;
        case 0xD5: return intmul_pmullw;
        case 0xE5: return intmul_pmulhw;
        case 0xE4: return intmul_pmulhuw;
        case 0xF4: return intmul_pmuludq;
        }
    if (x->map != MAP_0F38)
        return -1;
    switch (x->opcode) {
    case 0x04: return intmul_pmaddubsw;
    case 0x0B: return intmul_pmulhrsw;
    case 0x40: return intmul_pmulld;
    case 0x28: return x->prefix == P66 ? intmul_pmuldq : -1;
    case 0x50: case 0x51: return x->vex && x->prefix == P66 ? dot_vpdpbusd : -1;
    case 0x52: case 0x53: return x->vex && x->prefix == P66 ? dot_vpdpwssd : -1;
    }
    /* All of VFMADD, VFMSUB, VFNMADD, VFNMSUB, VFMADDSUB and VFMSUBADD. */
    bool fused = in(x->opcode & 0xF, 6, 0xF) && in(x->opcode >> 4, 9, 0xB);
    return fused && x->vex && x->prefix == P66 ? fma_vfmadd : -1;
}

/* Whether all it does is to move a value from or to memory. */
static bool moves_x86(const struct x86 *x)
{
    bool memory = x->modrm >> 6 != 3;
    uint8_t op = x->opcode, reg = x->modrm >> 3 & 7;

    switch (x->map) {
    case ONE_BYTE:
        return in(op, 0x50, 0x5F) || op == 0x68 || op == 0x6A || in(op, 0xA0, 0xA5)
            || op == 0xAA || op == 0xAB || op == 0xAC || op == 0xAD || op == 0x8F
            || (op == 0xFF && reg == 6)
            || (memory && (in(op, 0x88, 0x8B) || op == 0xC6 || op == 0xC7 || op == 0x63));
    case MAP_0F:
        return memory
            && (in(op, 0x10, 0x13) || in(op, 0x16, 0x18) || op == 0x0D || op == 0x28 || op == 0x29
                || op == 0x2B || op == 0x6E || op == 0x6F || op == 0x7E || op == 0x7F
                || op == 0xB6 || op == 0xB7 || op == 0xBE || op == 0xBF || op == 0xC3
                || op == 0xD6 || op == 0xE7 || op == 0xF0);
    case MAP_0F38:
        return memory
            && (in(op, 0x18, 0x1A) || op == 0x2A || in(op, 0x2C, 0x2F) || in(op, 0x58, 0x5A)
                || op == 0x78 || op == 0x79 || op == 0x8C || op == 0x8E || in(op, 0x90, 0x93)
                || (in(op, 0xF0, 0xF1) && x->prefix != PF2)); /* MOVBE, not CRC32 */
    default:
        return false;
    }
}

static bool branches_x86(const struct x86 *x)
{
    uint8_t op = x->opcode, reg = x->modrm >> 3 & 7;

    if (x->map == MAP_0F)
        return !x->vex && in(op, 0x80, 0x8F);
    return x->map == ONE_BYTE
        && (in(op, 0x70, 0x7F) || in(op, 0xE0, 0xE3) || op == 0xE8 || op == 0xE9 || op == 0xEB
            || op == 0xC2 || op == 0xC3 || (op == 0xFF && in(reg, 2, 5)));
}

static bool simd_x86(const struct x86 *x)
{
    uint8_t op = x->opcode;

    switch (x->map) {
    case ONE_BYTE:
        return in(op, 0xD8, 0xDF); /* x87 */
    case MAP_0F:
        return x->vex || in(op, 0x10, 0x17) || in(op, 0x28, 0x2F) || in(op, 0x50, 0x7F)
            || op == 0xC2 || in(op, 0xC4, 0xC6) || in(op, 0xD0, 0xFE);
    case MAP_0F38:
        return op < 0xF0; /* the rest is CRC32, ADX and BMI */
    default:
        return op != 0xF0; /* RORX */
    }
}

static int kind_of_x86_64(const uint8_t *bytes, size_t size)
{
    struct x86 x;

    if (!parse_x86(bytes, size, &x))
        return integer_other;
    int product = product_of_x86(&x);
    if (product >= 0)
        return product;
    return moves_x86(&x) ? memory_other
        : branches_x86(&x) ? branch_other
        : simd_x86(&x) ? simd_other
        : integer_other;
}
