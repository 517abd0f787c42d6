// Constants of exp and log. Written by tools/fit_constants.py (which repeats and checks the fits);
// do not edit. Data only, for the anonymous namespace of a kernel file.
#pragma once

// clang-format off

// exp, float32: x = n + j/8 + f, |f| <= 1/16, 2^x = 2^n * (1 + j/8) * 2^r, r = f + step_j, 2^r - 1 = r * w(r). With
// t = 8*q + j, q the biased exponent, t << 20 has the bits of 2^(q-127) * (1 + j/8). Steps are raised, and so is
// 2^x, by a factor of 33/32: then r is about as far from 0 below as above, and 2^0 loses nothing to rounding.
// step_j = j/8 - log2(1 + j/8) + log2(33/32), rounded.
constexpr float kExp2RaisedF[8] = {
    0x1.6bad38p-5f, -0x1.1655cap-11f, -0x1.c31ddep-6f, -0x1.47fcb8p-5f,
    -0x1.4c561p-5f, -0x1.fca6aep-6f, -0x1.a8b318p-7f, 0x1.99b728p-7f,
};
// w[0] + w[1]*r + ...; |r| <= 0.106895; absolute error of r*w(r) 2^-29.57 (before rounding the coefficients
// 2^-29.67).
constexpr float kExp2F[4] = {
    0x1.62e42ep-1f, 0x1.ebfbep-3f, 0x1.c6d9bp-5f, 0x1.3b345p-7f,
};
// The same where 2^r - 1 is what matters, not raised: |r| <= 0.147463, error 2^-33.00.
constexpr float kExp2StepF[8] = {
    0.0f, -0x1.70068ep-5f, -0x1.269e12p-4f, -0x1.59d4f8p-4f,
    -0x1.5c01a4p-4f, -0x1.350048p-4f, -0x1.d5d9fep-5f, -0x1.053f6ep-5f,
};
constexpr float kExp2SharpF[5] = {
    0x1.62e43p-1f, 0x1.ebfbdep-3f, 0x1.c6b012p-5f, 0x1.3b4a6ap-7f,
    0x1.5f5584p-10f,
};

// exp, float64: as above (t << 49); errors 2^-59.91 (before rounding 2^-60.26) and 2^-61.11.
constexpr double kExp2RaisedD[8] = {
    0x1.6bad3758efd87p-5, -0x1.1655c981725d3p-11, -0x1.c31ddd1b3bda2p-6,
    -0x1.47fcb8c0852f1p-5, -0x1.4c560fe68af88p-5, -0x1.fca6addd31e6bp-6,
    -0x1.a8b317dc836bdp-7, 0x1.99b728cb9d08p-7,
};
constexpr double kExp2D[8] = {
    0x1.62e42fefa39efp-1, 0x1.ebfbdff82c58ep-3, 0x1.c6b08d704bd8cp-5,
    0x1.3b2ab6fba6848p-7, 0x1.5d87fe234a054p-10, 0x1.430912a161b25p-13,
    0x1.ffe14904d87e5p-17, 0x1.62cf5bd938295p-20,
};
constexpr double kExp2StepD[8] = {
    0.0, -0x1.70068e7ef5a1ep-5, -0x1.269e12f346e2cp-4,
    -0x1.59d4f80cba83cp-4, -0x1.5c01a39fbd688p-4, -0x1.35004723c465ep-4,
    -0x1.d5d9fd5010b36p-5, -0x1.053f6d2608967p-5,
};
constexpr double kExp2SharpD[9] = {
    0x1.62e42fefa39efp-1, 0x1.ebfbdff82c58ep-3, 0x1.c6b08d704a82p-5,
    0x1.3b2ab6fba75d5p-7, 0x1.5d87fe6fd738ap-10, 0x1.4309126dbfe4dp-13,
    0x1.ffccf6f56cbeap-17, 0x1.62d49724c888fp-20, 0x1.abd7d1f45ec5ep-24,
};
// What the steps lost to rounding, and 32/33, the sum of two doubles.
constexpr double kExp2StepLoD[8] = {
    0.0, -0x1.fa00b120a068cp-59, 0x1.b6d40900b2502p-62,
    0x1.c141e66faaaadp-62, 0x1.817fd3b7d7e5dp-58, -0x1.a5db68721ca61p-58,
    -0x1.9956481d209f3p-59, -0x1.8c4baee073d4bp-60,
};
constexpr double kExp2LowerHi = 0x1.f07c1f07c1f08p-1;
constexpr double kExp2LowerLo = -0x1.f07c1f07c1f08p-56;

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
