#include "kvaq/eval/suite_file.h"

#include <gtest/gtest.h>
#include <unistd.h>

#include <cmath>
#include <filesystem>
#include <fstream>
#include <sstream>

#include "kvaq/base/error.h"

namespace kvaq {
namespace {

class Results : public testing::Test {
  protected:
    void SetUp() override {
        path_ = std::filesystem::temp_directory_path() / ("kvaq_suite_file_" + std::to_string(::getpid()) + ".jsonl");
        std::filesystem::remove(path_);
    }
    void TearDown() override { std::filesystem::remove(path_); }

    template <typename Function>
    static std::string error_of(Function function) {
        try {
            function();
        } catch (const Error& error) {
            return error.what();
        }
        return "no error";
    }
    [[nodiscard]] std::string content() const {
        std::ostringstream text;
        text << std::ifstream(path_, std::ios::binary).rdbuf();
        return text.str();
    }

    std::string path_;
    nlohmann::ordered_json head_ = {{"model", "m"}, {"caches", {"f16", "q4_0"}}};
    nlohmann::ordered_json settings_ = {{"seed", 1}, {"lengths", {512, 1024}}};
    std::vector<ItemScore> scores_ = {
        {.observations = {{.group = "512", .at = 10, .weight = 3, .values = {1, 0.25}}}, .text = "a\n\xc3"},
        {.observations = {{.group = "512", .at = 10, .weight = 3, .values = {0, std::nan("")}}}, .text = ""}};
};

TEST_F(Results, WhatWasWrittenIsThereAgain) {
    {
        SuiteFile file(path_, head_);
        EXPECT_TRUE(file.open_task("copy", settings_).empty());
        file.append("copy", 4, scores_);
    }
    SuiteFile file(path_, head_);
    const auto items = file.open_task("copy", settings_);
    ASSERT_EQ(items.size(), 1U);
    const std::vector<ItemScore>& found = items.at(4);
    ASSERT_EQ(found.size(), 2U);
    EXPECT_EQ(found[0].observations[0].group, "512");
    EXPECT_EQ(found[0].observations[0].at, 10U);
    EXPECT_EQ(found[0].observations[0].weight, 3);
    EXPECT_EQ(found[0].observations[0].values, (std::vector<double>{1, 0.25}));
    EXPECT_TRUE(std::isnan(found[1].observations[0].values[1]));
    EXPECT_EQ(found[0].text.substr(0, 2), "a\n");  // then a sign for the byte that is no UTF-8
    EXPECT_TRUE(file.open_task("json", settings_).empty());
}

TEST_F(Results, ALineThatWasCutOffIsDroppedAndTheRestKept) {
    {
        SuiteFile file(path_, head_);
        (void)file.open_task("copy", settings_);
        file.append("copy", 0, scores_);
        file.append("copy", 1, scores_);
    }
    std::filesystem::resize_file(path_, std::filesystem::file_size(path_) - 7);
    {
        SuiteFile file(path_, head_);
        const auto items = file.open_task("copy", settings_);
        EXPECT_EQ(items.size(), 1U);
        file.append("copy", 1, scores_);
    }
    SuiteFile file(path_, head_);
    EXPECT_EQ(file.open_task("copy", settings_).size(), 2U);
}

TEST_F(Results, RefusesOtherSettingsByName) {
    { SuiteFile(path_, head_).append("copy", 0, scores_); }
    const std::string before = content();
    nlohmann::ordered_json other = head_;
    other["caches"] = {"f16", "q8_0"};
    const std::string error = error_of([&] { SuiteFile file(path_, other); });
    EXPECT_NE(error.find("caches"), std::string::npos) << error;
    EXPECT_NE(error.find("q8_0"), std::string::npos) << error;
    EXPECT_NE(error.find("q4_0"), std::string::npos) << error;
    {
        SuiteFile file(path_, head_);
        (void)file.open_task("json", settings_);
    }
    SuiteFile file(path_, head_);
    nlohmann::ordered_json changed = settings_;
    changed["seed"] = 2;
    const std::string task = error_of([&] { (void)file.open_task("json", changed); });
    EXPECT_NE(task.find("wanted seed 2, found seed 1"), std::string::npos) << task;
    EXPECT_EQ(content().rfind(before, 0), 0U) << "the file was changed";
}

TEST_F(Results, RefusesOtherFiles) {
    std::ofstream(path_) << "{\"kind\":\"kvaq.eval\"}\n";
    EXPECT_NE(error_of([&] { SuiteFile file(path_, head_); }).find("no results file"), std::string::npos);
    std::ofstream(path_) << "prose\n";
    EXPECT_NE(error_of([&] { SuiteFile file(path_, head_); }).find("no results file"), std::string::npos);
    std::filesystem::remove(path_);
    { SuiteFile(path_, head_).append("copy", 0, scores_); }
    std::ofstream(path_, std::ios::app) << "{\"task\":\"copy\",\"item\":\"x\"}\n";
    EXPECT_NE(error_of([&] { SuiteFile file(path_, head_); }).find("line 3"), std::string::npos);
}

TEST_F(Results, WithoutANameNothingIsKept) {
    SuiteFile file("", head_);
    EXPECT_TRUE(file.open_task("copy", settings_).empty());
    file.append("copy", 0, scores_);
    EXPECT_FALSE(std::filesystem::exists(path_));
}

}  // namespace
}  // namespace kvaq
