"""Instructions as bytes, with the kind that each is of; what stands beside them is what they say.

Of every pattern for AArch64 one instruction is here, and of every branch of the parser for x86-64.
"""

from __future__ import annotations

AARCH64 = (
    (0x0E8B97FD, "dot sdot"),  # sdot v29.2s, v31.8b, v11.8b
    (0x0FB7E092, "dot sdot"),  # sdot v18.2s, v4.8b, v23.4b[1]
    (0x2E92974A, "dot udot"),  # udot v10.2s, v26.8b, v18.8b
    (0x2FA3E369, "dot udot"),  # udot v9.2s, v27.8b, v3.4b[1]
    (0x4E959DA4, "dot usdot"),  # usdot v4.4s, v13.16b, v21.16b
    (0x4FBBFBF5, "dot usdot"),  # usdot v21.4s, v31.16b, v27.4b[3]
    (0x0F1AF0FD, "dot sudot"),  # sudot v29.2s, v7.8b, v26.4b[0]
    (0x4E9BA69E, "matrix smmla"),  # smmla v30.4s, v20.16b, v27.16b
    (0x6E8FA4A6, "matrix ummla"),  # ummla v6.4s, v5.16b, v15.16b
    (0x4E92ACFD, "matrix usmmla"),  # usmmla v29.4s, v7.16b, v18.16b
    (0x0E289E3D, "intmul mul"),  # mul v29.8b, v17.8b, v8.8b
    (0x0F5E8A25, "intmul mul"),  # mul v5.4h, v17.4h, v14.h[5]
    (0x4EA8969F, "intmul mla"),  # mla v31.4s, v20.4s, v8.4s
    (0x6F640BA9, "intmul mla"),  # mla v9.8h, v29.8h, v4.h[6]
    (0x6E3F9458, "intmul mls"),  # mls v24.16b, v2.16b, v31.16b
    (0x6F654244, "intmul mls"),  # mls v4.8h, v18.8h, v5.h[2]
    (0x0EB7B786, "intmul sqdmulh"),  # sqdmulh v6.2s, v28.2s, v23.2s
    (0x4F63C074, "intmul sqdmulh"),  # sqdmulh v20.8h, v3.8h, v3.h[2]
    (0x2E7DB7B5, "intmul sqrdmulh"),  # sqrdmulh v21.4h, v29.4h, v29.4h
    (0x0FB4D0D7, "intmul sqrdmulh"),  # sqrdmulh v23.2s, v6.2s, v20.s[1]
    (0x4EAA8082, "intmul smlal"),  # smlal2 v2.2d, v4.4s, v10.4s
    (0x0F99282A, "intmul smlal"),  # smlal v10.2d, v1.2s, v25.s[2]
    (0x6E6B81E1, "intmul umlal"),  # umlal2 v1.4s, v15.8h, v11.8h
    (0x2F8E2845, "intmul umlal"),  # umlal v5.2d, v2.2s, v14.s[2]
    (0x0E7FA186, "intmul smlsl"),  # smlsl v6.4s, v12.4h, v31.4h
    (0x0F866A7F, "intmul smlsl"),  # smlsl v31.2d, v19.2s, v6.s[2]
    (0x6E38A384, "intmul umlsl"),  # umlsl2 v4.8h, v28.16b, v24.16b
    (0x2F646951, "intmul umlsl"),  # umlsl v17.4s, v10.4h, v4.h[6]
    (0x4E3BC092, "intmul smull"),  # smull2 v18.8h, v4.16b, v27.16b
    (0x0F52A96A, "intmul smull"),  # smull v10.4s, v11.4h, v2.h[5]
    (0x6E3FC09F, "intmul umull"),  # umull2 v31.8h, v4.16b, v31.16b
    (0x6FB3A3D9, "intmul umull"),  # umull2 v25.2d, v30.4s, v19.s[1]
    (0x4EB39160, "intmul sqdmlal"),  # sqdmlal2 v0.2d, v11.4s, v19.4s
    (0x0F413117, "intmul sqdmlal"),  # sqdmlal v23.4s, v8.4h, v1.h[0]
    (0x4EAFB24F, "intmul sqdmlsl"),  # sqdmlsl2 v15.2d, v18.4s, v15.4s
    (0x4F4B7ADB, "intmul sqdmlsl"),  # sqdmlsl2 v27.4s, v22.8h, v11.h[4]
    (0x0E66D2B3, "intmul sqdmull"),  # sqdmull v19.4s, v21.4h, v6.4h
    (0x0FB0BA04, "intmul sqdmull"),  # sqdmull v4.2d, v16.2s, v16.s[3]
    (0x4E72CF72, "fma fmla"),  # fmla v18.2d, v27.2d, v18.2d
    (0x4E4E0D0A, "fma fmla"),  # fmla v10.8h, v8.8h, v14.8h
    (0x4F821888, "fma fmla"),  # fmla v8.4s, v4.4s, v2.s[2]
    (0x0F17189F, "fma fmla"),  # fmla v31.4h, v4.4h, v7.h[5]
    (0x5F921243, "fma fmla"),  # fmla s3, s18, v18.s[0]
    (0x5F32101C, "fma fmla"),  # fmla h28, h0, v2.h[3]
    (0x0EAFCDDF, "fma fmls"),  # fmls v31.2s, v14.2s, v15.2s
    (0x0ECE0EFB, "fma fmls"),  # fmls v27.4h, v23.4h, v14.4h
    (0x4FB059F4, "fma fmls"),  # fmls v20.4s, v15.4s, v16.s[3]
    (0x0F0C50DC, "fma fmls"),  # fmls v28.4h, v6.4h, v12.h[0]
    (0x5F8B5ABE, "fma fmls"),  # fmls s30, s21, v11.s[2]
    (0x5F2950C8, "fma fmls"),  # fmls h8, h6, v9.h[2]
    (0x0E2AECE2, "fma fmlal"),  # fmlal v2.2s, v7.2h, v10.2h
    (0x6E28CDCA, "fma fmlal"),  # fmlal2 v10.4s, v14.4h, v8.4h
    (0x4FAA0B43, "fma fmlal"),  # fmlal v3.4s, v26.4h, v10.h[6]
    (0x2FAC81A1, "fma fmlal"),  # fmlal2 v1.2s, v13.2h, v12.h[2]
    (0x4EB0EC5B, "fma fmlsl"),  # fmlsl v27.4s, v2.4h, v16.4h
    (0x6EB0CD8F, "fma fmlsl"),  # fmlsl2 v15.4s, v12.4h, v16.4h
    (0x4F90438B, "fma fmlsl"),  # fmlsl v11.4s, v28.4h, v0.h[1]
    (0x2F9AC910, "fma fmlsl"),  # fmlsl2 v16.2s, v8.2h, v10.h[5]
    (0x1F5EC1A5, "fma fmadd"),  # fmsub d5, d13, d30, d16
    (0x6E48FD85, "fma bfdot"),  # bfdot v5.4s, v12.8h, v8.8h
    (0x0F73F37B, "fma bfdot"),  # bfdot v27.2s, v27.4h, v19.2h[1]
    (0x6E55ED05, "fma bfmmla"),  # bfmmla v5.4s, v8.8h, v21.8h
    (0x2EDAFED9, "fma bfmlal"),  # bfmlalb v25.4s, v22.8h, v26.8h
    (0x0FC7FAB4, "fma bfmlal"),  # bfmlalb v20.4s, v21.8h, v7.h[4]
    (0x6E22DC20, "simd other"),  # fmul v0.4s, v1.4s, v2.4s
    (0x4E22D420, "simd other"),  # fadd v0.4s, v1.4s, v2.4s
    (0x4E606820, "simd other"),  # sadalp v0.4s, v1.8h
    (0x4F000400, "simd other"),  # movi v0.4s, #0
    (0x1E220000, "simd other"),  # scvtf s0, w0
    (0x04A00000, "simd other"),  # add z0.s, z0.s, z0.s
    (0xF9400020, "memory other"),  # ldr x0, [x1]
    (0x3DC00020, "memory other"),  # ldr q0, [x1]
    (0x4C40A020, "memory other"),  # ld1 {v0.16b, v1.16b}, [x1]
    (0xA9BF7BFD, "memory other"),  # stp x29, x30, [sp, #-16]!
    (0xF9800020, "memory other"),  # prfm pldl1keep, [x1]
    (0xC85F7C20, "memory other"),  # ldxr x0, [x1]
    (0x14000000, "branch other"),  # b .
    (0x94000000, "branch other"),  # bl .
    (0x54000001, "branch other"),  # b.ne .
    (0xB4000000, "branch other"),  # cbz x0, .
    (0x37000000, "branch other"),  # tbnz w0, #0, .
    (0xD61F0000, "branch other"),  # br x0
    (0xD65F03C0, "branch other"),  # ret
    (0x91000400, "integer other"),  # add x0, x0, #1
    (0x9B027C20, "integer other"),  # mul x0, x1, x2
    (0xD2800000, "integer other"),  # mov x0, #0
    (0xD4000001, "integer other"),  # svc #0
    (0xD503201F, "integer other"),  # nop
    (0xD53BE040, "integer other"),  # mrs x0, cntvct_el0
)

X86_64 = (
    ("c4e26d50d9", "dot vpdpbusd"),  # {vex} vpdpbusd ymm
    ("62f26d4850d9", "dot vpdpbusd"),  # vpdpbusd zmm
    ("62f26d48515801", "dot vpdpbusd"),  # vpdpbusds 64(%rax), zmm
    ("c4e26d52d9", "dot vpdpwssd"),  # {vex} vpdpwssd ymm
    ("660f3804d1", "intmul pmaddubsw"),  # pmaddubsw xmm
    ("c462350416", "intmul pmaddubsw"),  # vpmaddubsw (%rsi), ymm
    ("660ff5d1", "intmul pmaddwd"),  # pmaddwd xmm
    ("c56df5e9", "intmul pmaddwd"),  # vpmaddwd ymm
    ("62f16d48f5d9", "intmul pmaddwd"),  # vpmaddwd zmm
    ("66410fd5d0", "intmul pmullw"),  # pmullw %xmm8, xmm
    ("c5ede5d9", "intmul pmulhw"),  # vpmulhw ymm
    ("c5ede4d9", "intmul pmulhuw"),  # vpmulhuw ymm
    ("c4e26d0bd9", "intmul pmulhrsw"),  # vpmulhrsw ymm
    ("c4e26d405c8820", "intmul pmulld"),  # vpmulld 32(%rax,%rcx,4), ymm
    ("660f3828d1", "intmul pmuldq"),  # pmuldq xmm
    ("c5edf4d9", "intmul pmuludq"),  # vpmuludq ymm
    ("c4e26db8d9", "fma vfmadd"),  # vfmadd231ps ymm
    ("c4e269a918", "fma vfmadd"),  # vfmadd213ss (%rax), xmm
    ("c4e2ed9cd9", "fma vfmadd"),  # vfnmadd132pd ymm
    ("62f26d49bad9", "fma vfmadd"),  # vfmsub231ps zmm {k1}
    ("c5ec59d9", "simd other"),  # vmulps ymm
    ("c5ec5818", "simd other"),  # vaddps (%rax), ymm
    ("f30f59d1", "simd other"),  # mulss xmm
    ("c5fc28d1", "simd other"),  # vmovaps ymm, ymm
    ("c4e27d18d1", "simd other"),  # vbroadcastss xmm, ymm
    ("c5fdd7c1", "simd other"),  # vpmovmskb ymm, %eax
    ("c4e26d02d9", "simd other"),  # vphaddd ymm
    ("c4e37d39ca01", "simd other"),  # vextracti128 ymm, xmm
    ("c5f877", "simd other"),  # vzeroupper
    ("660f38dcd1", "simd other"),  # aesenc xmm
    ("c5f893c1", "simd other"),  # kmovw %k1, %eax
    ("dd00", "simd other"),  # fldl (%rax)
    ("c5fc1018", "memory other"),  # vmovups (%rax), ymm
    ("c5fc2918", "memory other"),  # vmovaps ymm, (%rax)
    ("f30f1008", "memory other"),  # movss (%rax), xmm
    ("c4e27d1818", "memory other"),  # vbroadcastss (%rax), ymm
    ("c4e2752c10", "memory other"),  # vmaskmovps (%rax), ymm
    ("488b08", "memory other"),  # mov (%rax), %rcx
    ("4c894c2408", "memory other"),  # mov %r9, 8(%rsp)
    ("c70001000000", "memory other"),  # movl $1, (%rax)
    ("0fb608", "memory other"),  # movzbl (%rax), %ecx
    ("486308", "memory other"),  # movslq (%rax), %rcx
    ("55", "memory other"),  # push %rbp
    ("415c", "memory other"),  # pop %r12
    ("f3a4", "memory other"),  # rep movsb
    ("0f1808", "memory other"),  # prefetcht0 (%rax)
    ("0f38f008", "memory other"),  # movbe (%rax), %ecx
    ("75fe", "branch other"),  # jne .
    ("0f8400000000", "branch other"),  # je, far
    ("ffe0", "branch other"),  # jmp *%rax
    ("ff5008", "branch other"),  # call *8(%rax)
    ("c3", "branch other"),  # ret
    ("e8fbffffff", "branch other"),  # call .
    ("4889c1", "integer other"),  # mov %rax, %rcx
    ("488d4808", "integer other"),  # lea 8(%rax), %rcx
    ("480308", "integer other"),  # add (%rax), %rcx
    ("480fafc8", "integer other"),  # imul %rax, %rcx
    ("0fb6c8", "integer other"),  # movzbl %al, %ecx
    ("660f1f0400", "integer other"),  # nopw (%rax,%rax)
    ("f30f1efa", "integer other"),  # endbr64
    ("0f05", "integer other"),  # syscall
    ("f20f38f108", "integer other"),  # crc32l (%rax), %ecx
    ("c4e2f0f2d0", "integer other"),  # andn %rax, %rcx, %rdx
    ("c4e3fbf0c803", "integer other"),  # rorx $3, %rax, %rcx
    ("480f4408", "integer other"),  # cmove (%rax), %rcx
    ("f0480fb108", "integer other"),  # lock cmpxchg %rcx, (%rax)
)
