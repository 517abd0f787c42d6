// Constants of exp and log. Written by tools/fit_constants.py (which repeats and checks the fits);
// do not edit. Data only, for the anonymous namespace of a kernel file; needs <cstdint> before.
#pragma once

// clang-format off

// exp, float32: x = n + j/8 + r, 2^x = 2^n * T_j * (1 + z), 2^r - 1 = r * w(r).
// w[0] + w[1]*r + ...; |r| <= 1/16 + 2^-20; absolute error of r*w(r) 2^-32.23 (before rounding
// the coefficients 2^-33.55).
constexpr float kExp2F[4] = {
    0x1.62e43p-1f, 0x1.ebfbep-3f, 0x1.c6b8cp-5f, 0x1.3b2f46p-7f,
};
// bits(T_j) - bits(1.0f) - (j << 20), T_j = 2^(j/8) rounded: with t = 8*q + j, q the biased
// exponent, the bits of 2^(q-127) * T_j are (t << 20) + entry.
constexpr std::int32_t kExp2TableF_bits[8] = {
    0, -289342, -509968, -655657, -719629, -694486, -572163, -343865,
};
// 2^(j/8) = T_j * (1 + delta_j), delta_j rounded.
constexpr float kExp2DeltaF[8] = {
    0.0f, -0x1.9c0c22p-27f, 0x1.125002p-25f, -0x1.0a355p-25f,
    0x1.26055cp-26f, 0x1.67a1cap-28f, -0x1.f9c304p-27f, -0x1.a5217cp-28f,
};

// exp, float64: as above; absolute error of r*w(r) 2^-62.08 (before rounding 2^-67.23).
constexpr double kExp2D[8] = {
    0x1.62e42fefa39efp-1, 0x1.ebfbdff82c58fp-3, 0x1.c6b08d704bc71p-5,
    0x1.3b2ab6fba33fcp-7, 0x1.5d87fe0406a55p-10, 0x1.4309138fef5fap-13,
    0x1.fff1d59b3ce94p-17, 0x1.62a049d76cd44p-20,
};
// The same where 2^r is what matters and not 2^r - 1: absolute error 2^-58.26.
constexpr double kExp2ShortD[7] = {
    0x1.62e42fefa39efp-1, 0x1.ebfbdff82c783p-3, 0x1.c6b08d704b0b4p-5,
    0x1.3b2ab6ef85f3ep-7, 0x1.5d87fe452a567p-10, 0x1.430e5c7382c2p-13,
    0x1.ffdc87d33f862p-17,
};
// bits(T_j) - bits(1.0) - (j << 49): the bits of 2^(q-1023) * T_j are (t << 49) + entry.
constexpr std::int64_t kExp2TableD_bits[8] = {
    INT64_C(0), INT64_C(-155339362315909), INT64_C(-273786814220523),
    INT64_C(-352003352548825), INT64_C(-386347768529971), INT64_C(-372849295843109),
    INT64_C(-307177783110739), INT64_C(-184611166772089),
};
constexpr double kExp2DeltaD[8] = {
    0.0, -0x1.01b15eaa59348p-55, 0x1.34d754db0abb6p-55,
    0x1.690cebb7aafbp-56, -0x1.3b3efbf5e2228p-54, 0x1.db72fc1f0eab4p-55,
    0x1.c1a7792cb3387p-55, 0x1.4a385a63d07a7p-56,
};

// log, float64: u = 2^k * m, m in [1 - 1/32, 2 - 1/16), j the nearest of c_j = 1 + j/8,
// log(u) = k*ln2 + logc_j + log1p(r), r = m*invc_j - 1, r in [-0.0557871, 0.062501] with a slack
// of 2^-20. invc_j is 1/c_j rounded to 9 bits; logc_j = -log(invc_j) = hi + lo.
// kLogCHi and kLn2Hi are multiples of 2^-41, so that k*kLn2Hi and k*kLn2Hi + kLogCHi[j]
// are exact for |k| <= 2100.
constexpr double kLogInvC[8] = {
    0x1p+0, 0x1.c7p-1, 0x1.9ap-1, 0x1.74p-1, 0x1.55p-1, 0x1.3bp-1, 0x1.25p-1, 0x1.11p-1,
};
constexpr double kLogCHi[8] = {
    0.0, 0x1.e3707ee308p-4, 0x1.c6ffbc6fp-3, 0x1.4718dc271cp-2,
    0x1.a0325ed15p-2, 0x1.f168f7fb06p-2, 0x1.1dc619de07p-1, 0x1.41f8ff8472p-1,
};
constexpr double kLogCLo[8] = {
    0.0, -0x1.bc25ec6626551p-43, 0x1.ee138d3a69d43p-44,
    0x1.06c18fb4c14c5p-44, -0x1.2dc20b0d5e095p-45, -0x1.d6fb40a7c0c6ep-45,
    -0x1.aef92bd131f1ep-43, -0x1.4f7845166b2e1p-44,
};
constexpr double kLn2Hi = 0x1.62e42fefa4p-1;
constexpr double kLn2Lo = -0x1.8432a1b0e2634p-43;
// log1p(r) = r - (h - s*(h + R)), h = r*r/2, s = r/(2+r), z = s*s, R = z*(L[0] + z*(L[1] + ...));
// z in [0, 0.000918301]; error of s*R relative to r 2^-70.58 (before rounding 2^-75.05).
constexpr double kLogPoly[5] = {
    0x1.5555555555555p-1, 0x1.999999999b3e4p-2, 0x1.24924910d32f8p-2,
    0x1.c71d21111773ep-3, 0x1.73a5a4373acddp-3,
};

// log2(e) and ln(2), each the sum of two doubles (the high one is the nearest double).
constexpr double kLog2EHi = 0x1.71547652b82fep+0;
constexpr double kLog2ELo = 0x1.777d0ffda0d24p-56;
constexpr double kLn2DDHi = 0x1.62e42fefa39efp-1;
constexpr double kLn2DDLo = 0x1.abc9e3b39803fp-56;

// clang-format on
