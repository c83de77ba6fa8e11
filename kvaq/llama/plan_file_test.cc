#include "kvaq/llama/plan_file.h"

#include <gtest/gtest.h>

#include <array>
#include <cstdlib>
#include <filesystem>
#include <fstream>
#include <string>

#include "kvaq/base/error.h"
#include "kvaq/base/file.h"
#include "kvaq/llama/gguf_file.h"
#include "kvaq/quant/transform_samples.h"

namespace kvaq {
namespace {

class PlanFile : public testing::Test {
  protected:
    PlanFile() {
        char name[] = "/tmp/kvaq_plan_test_XXXXXX";
        folder_ = ::mkdtemp(name);
    }
    ~PlanFile() override { std::filesystem::remove_all(folder_); }
    [[nodiscard]] std::string path(const std::string& name) const { return folder_ + "/" + name; }
    /// Without atomic_write's fsync: thousands of broken files are written.
    static void put(const std::string& path, std::span<const std::byte> bytes) {
        std::ofstream(path, std::ios::binary)
            .write(reinterpret_cast<const char*>(bytes.data()), static_cast<std::streamsize>(bytes.size()));
    }

    static Plan mixed_plan() {
        ModelShape shape{
            .architecture = "gemma3", .name = "tiny", .fingerprint = "", .n_ctx_train = 8192, .layers = {}};
        for (int32_t i = 0; i < 5; ++i) {
            if (i == 3) continue;  // a layer without a cache
            shape.layers.push_back({.layer = i,
                                    .n_heads = 8,
                                    .n_kv_heads = i == 4 ? 1U : 4U,
                                    .head_dim_k = 64,
                                    .head_dim_v = 96,
                                    .sliding_window = i % 2 == 0 ? 512 : 0});
        }
        Plan plan = make_uniform_plan(parse_preset("k4v3-g32-rotk-w32-s4"), shape);
        plan.layers[1].heads[2].key = parse_preset("k2v2-hqq").key;
        plan.layers[1].heads[3].value = CodecSpec{};
        plan.layers[3].heads[0].value = parse_preset("k1.58v1.58-sym").value;
        plan.layers[0].heads[1].key = sample_transform(Side::kKey, 64, 1);
        plan.layers[2].heads[1].key = plan.layers[0].heads[1].key;                 // one fit, two heads
        plan.layers[2].heads[0].value = sample_transform(Side::kValue, 96, 2, 3);  // sorted
        plan.layers[2].heads[3].key = sample_transform(Side::kKey, 64, 3);         // a matrix
        plan.name = "measured 3.25 bits";
        plan.fingerprint = std::string(64, 'f');
        plan.key_period = 256;
        plan.layers[0].key_turn = {.interleaved = true, .first_channel = 8, .n_dims = 4, .frequencies = {1.0, 0.0125}};
        plan.predicted_kl = 0.0123456789012345;
        plan.measured_how = "moby.txt, 4096 tokens";
        return plan;
    }
    template <typename Call>
    static ErrorCode code_of(const Call& call, std::string* what = nullptr) {
        try {
            call();
        } catch (const Error& error) {
            if (what != nullptr) *what = error.what();
            return error.code();
        }
        ADD_FAILURE() << "no Error";
        return ErrorCode::kIo;
    }
    std::string folder_;
};

TEST_F(PlanFile, GivesBackThePlanThatWasWritten) {
    const Plan plan = mixed_plan();
    write_plan(plan, path("p.plan.gguf"));
    EXPECT_EQ(read_plan(path("p.plan.gguf")), plan);
    Plan still = mixed_plan();
    still.key_period = 0;
    still.layers[0].key_turn = {};
    write_plan(still, path("s.plan.gguf"));
    EXPECT_EQ(read_plan(path("s.plan.gguf")), still);
    EXPECT_EQ(GgufReader(path("s.plan.gguf"), "plan").get_int("kvaq.plan.schema_version", 0, 9), 1)
        << "older versions read it";
    Plan empty;
    empty.name = "nothing";
    write_plan(empty, path("e.plan.gguf"));
    EXPECT_EQ(read_plan(path("e.plan.gguf")), empty);
}

TEST_F(PlanFile, NoticesEveryFlippedByte) {
    const Plan plan = mixed_plan();
    write_plan(plan, path("p.plan.gguf"));
    const std::vector<std::byte> bytes = read_file(path("p.plan.gguf"));
    testing::internal::CaptureStderr();
    size_t n_unseen = 0;
    constexpr std::array kFlips = {0x01, 0x80, 0xFF};  // in turn: each byte once
    for (size_t i = 0; i < bytes.size(); ++i) {
        std::vector<std::byte> broken = bytes;
        broken[i] ^= static_cast<std::byte>(kFlips[i % kFlips.size()]);
        put(path("broken.gguf"), broken);
        try {
            EXPECT_EQ(read_plan(path("broken.gguf")), plan) << "byte " << i << " changed the plan unnoticed";
            ++n_unseen;
        } catch (const Error& error) {
            EXPECT_TRUE(error.code() == ErrorCode::kCorrupt || error.code() == ErrorCode::kMismatch) << error.what();
        }
    }
    (void)testing::internal::GetCapturedStderr();
    // Some bytes carry nothing: the twin in general.name, GGUF's version 2 or 3, padding.
    EXPECT_LT(n_unseen, bytes.size() / 15);
}

TEST_F(PlanFile, RefusesEveryTruncation) {
    write_plan(mixed_plan(), path("p.plan.gguf"));
    const std::vector<std::byte> bytes = read_file(path("p.plan.gguf"));
    testing::internal::CaptureStderr();
    // The last up to 31 bytes are padding: nothing is lost with them.
    for (size_t n = 0; n + 32 < bytes.size(); n += 3) {
        put(path("cut.gguf"), std::span(bytes).first(n));
        EXPECT_EQ(code_of([&] { (void)read_plan(path("cut.gguf")); }), ErrorCode::kCorrupt) << n;
    }
    (void)testing::internal::GetCapturedStderr();
}

TEST_F(PlanFile, RefusesTextThatATerminalWouldObey) {
    for (const char* text : {"k4v4\x1b[2J", "two\nlines", "tab\t", "\x7f"}) {
        Plan plan = mixed_plan();
        plan.name = text;
        write_plan(plan, path("p.gguf"));
        EXPECT_EQ(code_of([&] { (void)read_plan(path("p.gguf")); }), ErrorCode::kCorrupt) << text;
    }
    Plan plan = mixed_plan();
    plan.name = "mesur\xC3\xA9 3,25 bits";
    write_plan(plan, path("p.gguf"));
    EXPECT_EQ(read_plan(path("p.gguf")), plan);
}

TEST_F(PlanFile, RefusesAnotherSchemaAndAnotherKindOfFile) {
    GgufWriter newer;
    newer.set("general.type", std::string("kvaq-plan"));
    newer.set("kvaq.plan.schema_version", uint32_t{99});
    newer.write(path("newer.gguf"));
    std::string what;
    EXPECT_EQ(code_of([&] { (void)read_plan(path("newer.gguf")); }, &what), ErrorCode::kMismatch);
    EXPECT_NE(what.find("99"), std::string::npos) << what;
    EXPECT_EQ(code_of([&] { (void)read_plan(KVAQ_MODEL); }, &what), ErrorCode::kCorrupt);
    EXPECT_NE(what.find("not a plan"), std::string::npos) << what;
    EXPECT_EQ(code_of([&] { (void)read_plan(path("none.gguf")); }), ErrorCode::kNotFound);
    EXPECT_EQ(code_of([&] { write_plan(mixed_plan(), path("none/p.gguf")); }), ErrorCode::kIo);
}

}  // namespace
}  // namespace kvaq
