# Finds CUDA's headers, for types in vendors' headers. No compiler and no library of CUDA is needed.

# Returns the directories of cuda_runtime_api.h and its includes, from a toolkit or from pip's packages
# (nvidia-cuda-runtime, nvidia-cuda-crt; torch's CUDA wheels bring the first one). Empty if there are none.
function(hybrid_rt_find_cuda_headers result)
  hybrid_rt_python_package(nvidia _nvidia)
  file(GLOB _pip ${_nvidia}/cu*/include ${_nvidia}/cuda_runtime/include)
  find_path(_toolkit crt/host_defines.h NO_CACHE
    PATHS $ENV{CUDA_HOME}/include $ENV{CUDA_PATH}/include /usr/local/cuda/include ${_pip})
  if(_toolkit AND EXISTS ${_toolkit}/cuda_runtime_api.h)
    set(${result} ${_toolkit} PARENT_SCOPE)
    return()
  endif()
  find_path(_runtime cuda_runtime_api.h NO_CACHE PATHS ${_pip})
  if(_runtime AND _toolkit)
    set(${result} ${_runtime} ${_toolkit} PARENT_SCOPE)
  else()
    set(${result} "" PARENT_SCOPE)
  endif()
endfunction()
