# What `cmake --install` puts where, and what find_package(kvaq) reads. Everything is found from its own place, so a prefix may be moved:
#   bin/kvaq                          finds ../lib and ../lib/kvaq/llama.cpp/{lib,bin}
#   lib/libkvaq-llama.so              finds kvaq/llama.cpp/lib beside it
#   lib/kvaq/llama.cpp/{bin,lib}      llama.cpp's programs and libraries (KVAQ_INSTALL_LLAMA)
#   lib/kvaq/llama-cpp-python/        libllama.so is libkvaq-llama.so, for LLAMA_CPP_LIB_PATH
#   lib/libkvaq_core.a, include/, lib/cmake/kvaq      component dev
# The build tree has the same layout (llama.cpp is a pair of links there), so what is tested is what is installed.
include(CMakePackageConfigHelpers)

set(KVAQ_LLAMA_PLACE "lib/kvaq/llama.cpp")
set(KVAQ_PYTHON_PLACE "lib/kvaq/llama-cpp-python")

# kvaq_build_tree_llama(): the links lib/kvaq/llama.cpp/{bin,lib} of the build tree.
function(kvaq_build_tree_llama)
  file(MAKE_DIRECTORY "${CMAKE_BINARY_DIR}/${KVAQ_LLAMA_PLACE}")
  file(CREATE_LINK "${KVAQ_LLAMA_BIN_DIR}" "${CMAKE_BINARY_DIR}/${KVAQ_LLAMA_PLACE}/bin" SYMBOLIC)
  file(CREATE_LINK "${KVAQ_LLAMA_LIB_DIR}" "${CMAKE_BINARY_DIR}/${KVAQ_LLAMA_PLACE}/lib" SYMBOLIC)
endfunction()

# kvaq_install_headers(<folder>...): headers without those of tests and kernels.
function(kvaq_install_headers)
  foreach(folder ${ARGN})
    install(DIRECTORY "${CMAKE_SOURCE_DIR}/kvaq/${folder}" DESTINATION include/kvaq COMPONENT dev FILES_MATCHING PATTERN "*.h"
            PATTERN "*-inl.h" EXCLUDE PATTERN "*_testing.h" EXCLUDE PATTERN "*_samples.h" EXCLUDE)
  endforeach()
endfunction()

function(kvaq_install_core)
  install(TARGETS kvaq_core EXPORT kvaqTargets ARCHIVE DESTINATION lib COMPONENT dev)
  kvaq_install_headers(base quant stats plan attention cache)
endfunction()

# kvaq_install_llama(): the drop-in, the program, and llama.cpp unless KVAQ_INSTALL_LLAMA is off.
function(kvaq_install_llama)
  install(TARGETS kvaq_cli RUNTIME DESTINATION bin COMPONENT runtime)
  install(TARGETS kvaq_llama EXPORT kvaqTargets LIBRARY DESTINATION lib COMPONENT runtime)
  # A link: install(FILES) copies it as one.
  install(FILES "${CMAKE_BINARY_DIR}/${KVAQ_PYTHON_PLACE}/libllama.so" DESTINATION ${KVAQ_PYTHON_PLACE} COMPONENT runtime)
  install(FILES "${KVAQ_SHARE_DIR}/kvaq.1" DESTINATION share/man/man1 COMPONENT runtime)
  install(FILES "${KVAQ_SHARE_DIR}/kvaq.bash" DESTINATION share/bash-completion/completions RENAME kvaq COMPONENT runtime)
  install(FILES "${KVAQ_SHARE_DIR}/_kvaq" DESTINATION share/zsh/site-functions COMPONENT runtime)
  install(FILES "${CMAKE_SOURCE_DIR}/packaging/debian/copyright" "${CMAKE_SOURCE_DIR}/README.md" "${CMAKE_SOURCE_DIR}/CHANGELOG.md"
          DESTINATION share/doc/kvaq COMPONENT runtime)
  install(FILES "${CMAKE_SOURCE_DIR}/kvaq/llama/kvaq.h" DESTINATION include COMPONENT dev)
  install(FILES "${CMAKE_SOURCE_DIR}/kvaq/llama/kvaq.h" DESTINATION include/kvaq/llama COMPONENT dev)
  if(NOT KVAQ_INSTALL_LLAMA)
    return()
  endif()
  install(DIRECTORY "${KVAQ_LLAMA_BIN_DIR}/" DESTINATION ${KVAQ_LLAMA_PLACE}/bin USE_SOURCE_PERMISSIONS COMPONENT runtime
          FILES_MATCHING PATTERN "llama-*")
  # Each library once, under the name by which it is loaded.
  file(GLOB libraries "${KVAQ_LLAMA_LIB_DIR}/lib*.so*")
  foreach(library ${libraries})
    get_filename_component(name "${library}" NAME)
    if(name MATCHES "\\.so\\.[0-9]+$" OR name MATCHES "-impl\\.so$")
      get_filename_component(file "${library}" REALPATH)
      install(FILES "${file}" DESTINATION ${KVAQ_LLAMA_PLACE}/lib RENAME "${name}" COMPONENT runtime)
    endif()
  endforeach()
  # Builds for newer processors, which the loader picks by itself (scripts/portable_llama.sh).
  if(EXISTS "${KVAQ_LLAMA_LIB_DIR}/glibc-hwcaps")
    install(DIRECTORY "${KVAQ_LLAMA_LIB_DIR}/glibc-hwcaps" DESTINATION ${KVAQ_LLAMA_PLACE}/lib COMPONENT runtime)
  endif()
  install(DIRECTORY ${KVAQ_LLAMA_INCLUDES} DESTINATION include/kvaq/llama.cpp COMPONENT dev FILES_MATCHING PATTERN "*.h")
endfunction()

function(kvaq_install_package)
  configure_package_config_file("${CMAKE_SOURCE_DIR}/cmake/kvaqConfig.cmake.in" "${CMAKE_BINARY_DIR}/kvaqConfig.cmake"
                                INSTALL_DESTINATION lib/cmake/kvaq NO_CHECK_REQUIRED_COMPONENTS_MACRO)
  write_basic_package_version_file("${CMAKE_BINARY_DIR}/kvaqConfigVersion.cmake" COMPATIBILITY SameMinorVersion)
  install(FILES "${CMAKE_BINARY_DIR}/kvaqConfig.cmake" "${CMAKE_BINARY_DIR}/kvaqConfigVersion.cmake" DESTINATION lib/cmake/kvaq COMPONENT dev)
  install(EXPORT kvaqTargets NAMESPACE kvaq:: DESTINATION lib/cmake/kvaq COMPONENT dev)
endfunction()
