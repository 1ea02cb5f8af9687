// The kernels as operations of torch; see dualcaps/kernels/__init__.py.

#include "convolution.h"
#include "few_channels.h"
#include "pooling.h"
#include "routing.h"

#include <torch/library.h>

TORCH_LIBRARY(dualcaps_cpu, library) {
  library.def("conv2d(Tensor input, Tensor weight, Tensor? bias, int padding) -> Tensor");
  library.def("conv2d_backward(Tensor gradient, Tensor input, Tensor weight, int padding) -> (Tensor, Tensor)");
  library.def("few_channels_conv2d(Tensor input, Tensor weight, Tensor? bias, int padding) -> Tensor");
  library.def(
      "few_channels_conv2d_backward(Tensor gradient, Tensor input, Tensor weight, int padding) -> (Tensor, Tensor)");
  library.def("max_pool2d(Tensor input, bool ceil_mode) -> (Tensor, Tensor)");
  library.def(
      "max_pool2d_backward(Tensor gradient, Tensor chosen, int rows, int columns, bool ceil_mode) -> Tensor");
  library.def(
      "route(Tensor votes, int iterations, float squash_constant, bool accumulate) -> (Tensor, Tensor, Tensor, Tensor)");
  library.def(
      "route_backward(Tensor gradient, Tensor votes, Tensor poses, Tensor sums, Tensor couplings, "
      "float squash_constant, bool accumulate) -> Tensor");
}

TORCH_LIBRARY_IMPL(dualcaps_cpu, CPU, library) {
  library.impl("conv2d", &dualcaps::conv2d);
  library.impl("conv2d_backward", &dualcaps::conv2d_backward);
  library.impl("few_channels_conv2d", &dualcaps::few_channels_conv2d);
  library.impl("few_channels_conv2d_backward", &dualcaps::few_channels_conv2d_backward);
  library.impl("max_pool2d", &dualcaps::max_pool2d);
  library.impl("max_pool2d_backward", &dualcaps::max_pool2d_backward);
  library.impl("route", &dualcaps::route);
  library.impl("route_backward", &dualcaps::route_backward);
}
