#include "kvaq/llama/gpu_attention.h"

#include <gtest/gtest.h>

#include <cstdlib>

#include "kvaq/base/error.h"
#include "kvaq/eval/session.h"
#include "kvaq/llama/attach.h"

namespace kvaq {
namespace {

TEST(KvDevice, IsReadFromItsNames) {
    EXPECT_EQ(parse_kv_device("auto"), KvDevice::kAuto);
    EXPECT_EQ(parse_kv_device("cpu"), KvDevice::kCpu);
    EXPECT_EQ(parse_kv_device("gpu"), KvDevice::kGpu);
    try {
        (void)parse_kv_device("tpu");
        FAIL() << "wanted an error";
    } catch (const Error& error) {
        EXPECT_EQ(error.code(), ErrorCode::kInvalidArgument);
        EXPECT_NE(std::string(error.what()).find("wanted auto, cpu or gpu, found 'tpu'"), std::string::npos)
            << error.what();
    }
}

TEST(KvDevice, AGpuThatIsNotThereIsRefusedAndAutoServesOnTheHost) {
    if (const std::string why_not = why_no_gpu(); why_not.empty()) GTEST_SKIP() << "there is a GPU";
    quiet_llama(false);
    announce_plans(false);
    const ModelPtr model = load_model(KVAQ_MODEL);
    const ContextOptions options{.n_ctx = 256, .n_batch = 64, .flash_attention = true};
    setenv("KVAQ_KV_DEVICE", "gpu", 1);
    testing::internal::CaptureStderr();
    EXPECT_THROW((void)make_context(model.get(), options, plan_factory("k4v4")), Error);
    const std::string said = testing::internal::GetCapturedStderr();
    EXPECT_NE(said.find("the cache cannot be kept on a GPU (--kv-device gpu): wanted a CUDA device, found"),
              std::string::npos)
        << said;
    setenv("KVAQ_KV_DEVICE", "auto", 1);
    const ContextPtr ctx = make_context(model.get(), options, plan_factory("k4v4"));
    ASSERT_NE(ctx, nullptr);
    EXPECT_NE(cache_of(ctx.get())->describe().at(0).find("attention cpu-"), std::string::npos);
    EXPECT_EQ(cache_of(ctx.get())->use().device, 0U);
    unsetenv("KVAQ_KV_DEVICE");
    announce_plans(true);
    attach({});
}

}  // namespace
}  // namespace kvaq
