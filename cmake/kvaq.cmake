# Compile options shared by every target of this project.
add_library(kvaq_options INTERFACE)
target_include_directories(kvaq_options INTERFACE "${CMAKE_SOURCE_DIR}")
target_compile_definitions(kvaq_options INTERFACE FMT_HEADER_ONLY)
# -Wno-restrict: g++ 12 warns wrongly on std::string operator+ (GCC bug 105329).
target_compile_options(kvaq_options INTERFACE -Wall -Wextra -Wshadow -Wconversion -Wno-restrict -ffp-contract=off
                       $<$<BOOL:${KVAQ_WERROR}>:-Werror>)

# kvaq_sources(<out> <folder>): its .cc files without tests, and the SIMD files of this processor with their target's flags.
function(kvaq_sources out folder)
  file(GLOB sources CONFIGURE_DEPENDS RELATIVE "${CMAKE_SOURCE_DIR}" "${CMAKE_SOURCE_DIR}/${folder}/*.cc")
  list(FILTER sources EXCLUDE REGEX "_test\\.cc$")
  if(CMAKE_SYSTEM_PROCESSOR MATCHES "x86_64|AMD64")
    list(FILTER sources EXCLUDE REGEX "_simd_neon\\.cc$")
  else()
    list(FILTER sources EXCLUDE REGEX "_simd_avx[0-9a-z]+\\.cc$")
    if(NOT CMAKE_SYSTEM_PROCESSOR MATCHES "aarch64")
      list(FILTER sources EXCLUDE REGEX "_simd_neon\\.cc$")
    endif()
  endif()
  foreach(source ${sources})
    set(flags "")
    if(source MATCHES "_simd_avx2\\.cc$")
      set(flags "-O3 -mavx2 -mfma -mf16c")
    elseif(source MATCHES "_simd_avx512\\.cc$")
      set(flags "-O3 -mavx512f -mavx512bw -mavx512dq -mavx512vl -mfma -mf16c -mprefer-vector-width=512")
    elseif(source MATCHES "_simd_avx512vnni\\.cc$")
      set(flags "-O3 -mavx512f -mavx512bw -mavx512dq -mavx512vl -mavx512vnni -mavx512vbmi -mfma -mf16c -mprefer-vector-width=512")
    elseif(source MATCHES "_simd_(scalar|neon)\\.cc$")
      set(flags "-O3")
    endif()
    if(source MATCHES "attention/block_kernels_simd_")  # sums of products: fused where the CPU can, see mul_add there
      string(APPEND flags " -ffp-contract=fast")
    endif()
    if(flags)
      set_source_files_properties("${CMAKE_SOURCE_DIR}/${source}" PROPERTIES COMPILE_FLAGS "${flags}")
    endif()
  endforeach()
  list(TRANSFORM sources PREPEND "${CMAKE_SOURCE_DIR}/")
  set(${out} ${sources} PARENT_SCOPE)
endfunction()

# Paths that tests of the whole system need.
function(kvaq_test_paths target)
  target_compile_definitions(${target} PRIVATE KVAQ_MODEL="${KVAQ_MODEL}" KVAQ_BIN_DIR="${KVAQ_LLAMA_BIN_DIR}"
    KVAQ_LIB="$<TARGET_FILE:kvaq_llama>" KVAQ_CLI="$<TARGET_FILE:kvaq_cli>" KVAQ_DATA_DIR="${CMAKE_SOURCE_DIR}/data"
    KVAQ_PYTHON_LIB_DIR="${KVAQ_PYTHON_LIB_DIR}")
endfunction()

# kvaq_tests(<folder> <library>): one executable per folder.
function(kvaq_tests folder library)
  file(GLOB sources CONFIGURE_DEPENDS "${CMAKE_SOURCE_DIR}/kvaq/${folder}/*_test.cc")
  if(NOT sources)
    return()
  endif()
  add_executable(kvaq_${folder}_tests ${sources})
  target_link_libraries(kvaq_${folder}_tests PRIVATE ${library} GTest::gtest_main)
  target_compile_definitions(kvaq_${folder}_tests PRIVATE KVAQ_DATA_DIR="${CMAKE_SOURCE_DIR}/data")
  set(label fast)
  set(serial FALSE)
  if(folder STREQUAL llama OR folder STREQUAL eval)
    set(label model)
    set(serial TRUE)  # llama.cpp's threads spin: two models at once on two cores crawl
    kvaq_test_paths(kvaq_${folder}_tests)
  endif()
  gtest_discover_tests(kvaq_${folder}_tests DISCOVERY_MODE PRE_TEST PROPERTIES LABELS ${label} TIMEOUT 900 RUN_SERIAL ${serial})
endfunction()
