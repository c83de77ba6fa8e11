// Slot files of a real llama-server that is killed, whose disk is full or read-only, and whose clients ask for names elsewhere.
#include <gtest/gtest.h>

#include <nlohmann/json.hpp>

#include "tests/subprocess.h"

namespace kvaq {
namespace {

nlohmann::json session(const std::string& plan, std::vector<std::string> arguments) {
    const ProcessOptions options{
        .env = plan.empty()
                   ? std::map<std::string, std::string>{}
                   : std::map<std::string, std::string>{{"KVAQ_TEST_PRELOAD", KVAQ_LIB}, {"KVAQ_TEST_PLAN", plan}},
        .timeout_seconds = 600};
    const std::string script = std::string(KVAQ_DATA_DIR) + "/../tests/faults_client.py";
    arguments.insert(arguments.begin() + 1, {std::string(KVAQ_BIN_DIR) + "/llama-server", KVAQ_MODEL});
    arguments.insert(arguments.begin(), {"python3", script});
    const ProcessResult result = run_process(arguments, options);
    EXPECT_EQ(result.exit_code, 0) << result.err;
    return result.exit_code == 0 ? nlohmann::json::parse(result.out) : nlohmann::json();
}

TEST(Faults, AServerKilledWhileItSavesASlotLeavesTheOldFileOrTheNewOne) {
    const char* rounds = std::getenv("KVAQ_KILL_ROUNDS");
    TemporaryFolder folder;
    const nlohmann::json seen = session("k4v4-rot-s4", {"kill", folder.file(""), rounds != nullptr ? rounds : "3"});
    ASSERT_TRUE(seen.is_object());
    SCOPED_TRACE(seen.dump(1).substr(0, 8000));
    const std::string text = seen.at("first").at("text");
    EXPECT_EQ(seen.at("save").at(0), 200);
    const auto n_saved = seen.at("save").at(1).at("n_saved");
    for (const auto& round : seen.at("rounds")) {
        EXPECT_EQ(round.at("restore"), 200);
        EXPECT_EQ(round.at("n_restored"), n_saved);
        EXPECT_EQ(round.at("again").at("prompt_n"), 1) << "the restored slot was computed again";
        EXPECT_EQ(round.at("again").at("text"), text);
        for (const auto& [name, status] : round.at("left").items())
            EXPECT_TRUE(status == 200 || status == 400) << name << ": whole under its temporary name, or refused";
    }
    EXPECT_EQ(seen.at("last"), 200);
    EXPECT_EQ(seen.at("last_text"), text);
    EXPECT_EQ(seen.at("exit_code"), 0);
}

TEST(Faults, SlotFilesStayInTheirFolderAndAFullOneLosesNothing) {
    TemporaryFolder plain_folder, folder;
    std::filesystem::create_directories(plain_folder.file("above/slots"));
    std::filesystem::create_directories(folder.file("above/slots"));
    const nlohmann::json plain = session("", {"names", plain_folder.file("above/slots/")});
    const nlohmann::json seen = session("k4v4-rot-s4", {"names", folder.file("above/slots/")});
    ASSERT_TRUE(seen.is_object() && plain.is_object());
    SCOPED_TRACE(seen.dump(1) + plain.at("names").dump());
    EXPECT_EQ(seen.at("names"), plain.at("names")) << "names are taken and refused as plain llama-server does";
    EXPECT_EQ(seen.at("made_here"), plain.at("made_here"));
    EXPECT_TRUE(seen.at("made_elsewhere").empty());
    for (const auto& name : seen.at("names")) {
        const std::string text = name.at(0);
        if (text.find('/') != std::string::npos || text.find('\\') != std::string::npos ||
            text.find("..") != std::string::npos) {
            EXPECT_EQ(name.at(1), 400) << text;
        }
    }
    std::printf("full disk by %s, read-only folder by %s\n", seen.at("full_by").dump().c_str(),
                seen.at("read_only_by").dump().c_str());
    const auto& full = seen.at("full");
    EXPECT_EQ(full.at("save_short"), 200);
    EXPECT_EQ(full.at("long"), 200);
    EXPECT_EQ(full.at("save_long"), 500);
    EXPECT_EQ(full.at("files"), nlohmann::json::array({"state.bin"}));
    EXPECT_EQ(full.at("restore_short"), 200) << "the old file is intact";
    EXPECT_EQ(full.at("same_text"), true);
    EXPECT_EQ(full.at("exit_code"), 0);
    if (seen.contains("read_only")) {
        EXPECT_EQ(seen.at("read_only").at("save"), 500);
        EXPECT_EQ(seen.at("read_only").at("same_text"), true);
        EXPECT_EQ(seen.at("read_only").at("exit_code"), 0);
    }
}

}  // namespace
}  // namespace kvaq
