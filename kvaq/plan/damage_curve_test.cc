#include "kvaq/plan/damage_curve.h"

#include <gtest/gtest.h>

#include <cmath>

namespace kvaq {
namespace {

TEST(DamageCurve, GoesThroughItsPointsInAnyOrder) {
    const DamageCurve curve({{4.0, 0.3}, {1.0, 0.1}, {0.25, 0.02}});
    EXPECT_NEAR(curve(1.0), 0.1, 1e-12);
    EXPECT_NEAR(curve(4.0), 0.3, 1e-12);
    EXPECT_NEAR(curve(0.25), 0.02, 1e-12);
    EXPECT_NEAR(curve(2.0), std::sqrt(0.1 * 0.3), 1e-12) << "half way in logarithms";
    EXPECT_EQ(curve(0.0), 0.0);
}

TEST(DamageCurve, IsProportionalWithoutAnyBendMeasured) {
    const DamageCurve curve({{1.0, 0.2}});
    EXPECT_NEAR(curve(0.1), 0.02, 1e-12);
    EXPECT_NEAR(curve(10.0), 2.0, 1e-12);
    EXPECT_NEAR(DamageCurve()(0.7), 0.7, 1e-12);
}

TEST(DamageCurve, RisesStrictlyWhateverWasMeasured) {
    const DamageCurve curve({{0.1, 0.05}, {0.2, 0.04}, {0.4, 0.04}, {1.0, 0.9}, {1.0, 2.0}});
    double last = 0;
    for (double noise = 1e-6; noise < 1e3; noise *= 1.1) {
        const double kl = curve(noise);
        EXPECT_GT(kl, last) << noise;
        last = kl;
    }
}

TEST(DamageCurve, HoldsItsExponentBeyondTheEnds) {
    const DamageCurve steep({{1.0, 0.1}, {2.0, 0.9}});  // exponent 3.2 between
    EXPECT_NEAR(steep(0.5), 0.05, 1e-12);
    EXPECT_NEAR(steep(4.0), 1.8, 1e-12);
    const DamageCurve flat({{1.0, 0.1}, {2.0, 0.11}});
    EXPECT_NEAR(flat(0.25), 0.05, 1e-12);
}

}  // namespace
}  // namespace kvaq
