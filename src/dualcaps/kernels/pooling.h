// Max pooling of 2x2 windows, forward and backward, in float32 or bfloat16; images lie channels last.

#pragma once

#include "lanes.h"

#include <ATen/Parallel.h>
#include <ATen/core/Tensor.h>
#include <ATen/ops/empty.h>
#include <ATen/ops/empty_like.h>

#include <tuple>
#include <type_traits>

namespace dualcaps {

using at::Tensor;

// Windows of 2x2 pixels, side by side; those at an edge may lack pixels, which are null.
struct Windows {
  Windows(int64_t rows, int64_t columns, int64_t channels, bool ceil_mode)
      : rows(rows),
        columns(columns),
        channels(channels),
        down((rows + ceil_mode) / 2),
        across((columns + ceil_mode) / 2) {}
  // Calls use(pixels, place) for each window of all images, where `place` is that of its first output, in parallel.
  template <typename Number, typename Use>
  void each(Number* images, int64_t count, const Use& use) const {
    at::parallel_for(0, count * down, 1, [&](int64_t begin, int64_t end) {
      for (int64_t line = begin; line < end; ++line) {
        Number* image = images + line / down * rows * columns * channels;
        for (int64_t x = 0; x < across; ++x) {
          Number* pixels[4];
          for (int k = 0; k < 4; ++k) {
            int64_t row = 2 * (line % down) + k / 2, column = 2 * x + k % 2;
            pixels[k] = row < rows && column < columns ? image + (row * columns + column) * channels : nullptr;
          }
          use(pixels, (line * across + x) * channels);
        }
      }
    });
  }
  int64_t rows, columns, channels, down, across;
};

// The largest of a window's pixels and its number: the first of equal ones, the last that is not a number, as in torch.
template <typename Number>
void largest(const Number* (&pixels)[4], int64_t channels, Number* __restrict best, uint8_t* __restrict which) {
  int32_t number[4] = {0, 1, 2, 3};
  for (int k = 1; k < 4; ++k)  // in place of a missing pixel the one before is looked at twice
    if (!pixels[k]) pixels[k] = pixels[k - 1], number[k] = number[k - 1];
  for (int64_t i = 0; i < channels; ++i) {
    Number most = pixels[0][i];
    int32_t index = 0;
    UNROLL
    for (int k = 1; k < 4; ++k) {
      Number candidate = pixels[k][i];
      float value = to_float(candidate);
      bool more = value > to_float(most) || value != value;
      most = more ? candidate : most;
      index = more ? number[k] : index;
    }
    best[i] = most;
    which[i] = static_cast<uint8_t>(index);
  }
}

inline std::tuple<Tensor, Tensor> max_pool2d(const Tensor& input, bool ceil_mode) {
  TORCH_CHECK(input.dim() == 4, "images must have four dimensions");
  Windows all(input.size(2), input.size(3), input.size(1), ceil_mode);
  TORCH_CHECK(all.down > 0 && all.across > 0, "the images are smaller than the windows");
  Tensor images = input.contiguous(at::MemoryFormat::ChannelsLast);
  Tensor output = at::empty({input.size(0), all.channels, all.down, all.across}, images.options(),
                            at::MemoryFormat::ChannelsLast);
  Tensor chosen = at::empty_like(output, output.options().dtype(at::kByte));
  uint8_t* which = chosen.mutable_data_ptr<uint8_t>();
  for_type(images, [&](auto number) {
    using Number = decltype(number);
    Number* to = mutable_numbers<Number>(output);
    all.each(numbers<Number>(images), input.size(0), [&](const Number* (&pixels)[4], int64_t place) {
      largest(pixels, all.channels, to + place, which + place);
    });
  });
  return {output, chosen};
}

// Gradients of the pixel that is number `k` in its window, as bits: the compiler does not select 16-bit numbers at once.
template <typename Bits>
void chosen_only(const Bits* __restrict slopes, const uint8_t* __restrict which, Bits k, int64_t channels,
                 Bits* __restrict pixel) {
  for (int64_t i = 0; i < channels; ++i) pixel[i] = slopes[i] & -static_cast<Bits>(which[i] == k);
}

inline Tensor max_pool2d_backward(const Tensor& gradient, const Tensor& chosen, int64_t rows, int64_t columns,
                                  bool ceil_mode) {
  Windows all(rows, columns, gradient.size(1), ceil_mode);
  TORCH_CHECK(chosen.scalar_type() == at::kByte && gradient.sizes() == chosen.sizes() &&
                  gradient.size(2) == all.down && gradient.size(3) == all.across,
              "the gradient does not have the shape of the outputs");
  Tensor slopes = gradient.contiguous(at::MemoryFormat::ChannelsLast);
  Tensor choices = chosen.contiguous(at::MemoryFormat::ChannelsLast);
  Tensor found = at::empty({gradient.size(0), all.channels, rows, columns}, gradient.options(),
                           at::MemoryFormat::ChannelsLast);
  if (2 * all.down < rows || 2 * all.across < columns) found.zero_();
  const uint8_t* which = choices.const_data_ptr<uint8_t>();
  for_type(slopes, [&](auto number) {
    using Bits = std::conditional_t<sizeof(number) == 4, uint32_t, uint16_t>;
    const Bits* from = numbers<Bits>(slopes);
    all.each(mutable_numbers<Bits>(found), gradient.size(0), [&](Bits* (&pixels)[4], int64_t place) {
      for (Bits k = 0; k < 4; ++k)
        if (pixels[k]) chosen_only(from + place, which + place, k, all.channels, pixels[k]);
    });
  });
  return found;
}

}  // namespace dualcaps
