// A bundle's decoder in C++, by OpenVINO on the CPU: a latent file in, a picture (PPM) out. OpenVINO's wheel has the
// headers and the library, so `pip install openvino` and a compiler are all that it takes:
//
//   openvino=$(python -c "import openvino; print(openvino.__path__[0])")
//   libraries="$openvino/libs/libopenvino.so.* -Wl,-rpath,$openvino/libs"
//   g++ -std=c++17 -O2 examples/cpp/decode.cpp -I$openvino/include $libraries -o decode
//   ./decode mse840k/decoder.onnx photo.safetensors decoded.ppm

#include <algorithm>
#include <cstdio>
#include <cstring>
#include <fstream>
#include <iostream>
#include <iterator>
#include <openvino/openvino.hpp>
#include <stdexcept>
#include <string>

struct Latent {
    ov::Tensor tensor;             // (B, C, h, w)
    size_t height = 0, width = 0;  // of the picture before it was padded; 0 where the file does not say
};

// What follows `key` in a text.
const char* after(const std::string& text, const std::string& key) {
    const size_t place = text.find(key);
    if (place == std::string::npos) throw std::runtime_error("the latent file has no " + key);
    return text.c_str() + place + key.size();
}

// A safetensors file: the length of a header (little-endian, as this machine is taken to be), the header in JSON, and
// the numbers.
Latent read_latent(const char* path) {
    std::ifstream file(path, std::ios::binary);
    const std::string bytes((std::istreambuf_iterator<char>(file)), {});
    uint64_t length = 0;
    if (bytes.size() < 8 || (std::memcpy(&length, bytes.data(), 8), length > bytes.size() - 8))
        throw std::runtime_error(std::string(path) + " is not a latent file");
    const std::string header = bytes.substr(8, length), latent = after(header, "\"latent\":{");
    size_t b, c, h, w, begin, end;
    if (std::strncmp(after(latent, "\"dtype\":\""), "F32\"", 4) ||
        std::sscanf(after(latent, "\"shape\":"), "[%zu,%zu,%zu,%zu]", &b, &c, &h, &w) != 4 ||
        std::sscanf(after(latent, "\"data_offsets\":"), "[%zu,%zu]", &begin, &end) != 2 ||
        end - begin != b * c * h * w * sizeof(float) || end > bytes.size() - 8 - length)
        throw std::runtime_error("the latent must be F32 with 4 axes, and whole");
    Latent read{ov::Tensor(ov::element::f32, {b, c, h, w})};
    std::memcpy(read.tensor.data(), bytes.data() + 8 + length + begin, end - begin);
    if (const size_t place = header.find("\"vaedeploy.size\":\""); place != std::string::npos)
        std::sscanf(header.c_str() + place + 18, "[%zu, %zu]", &read.height, &read.width);
    return read;
}

int main(int count, char** words) try {
    if (count != 4) throw std::runtime_error("usage: decode DECODER.onnx LATENT.safetensors PICTURE.ppm");
    const Latent latent = read_latent(words[2]);
    // In float32: by itself OpenVINO takes bfloat16 where the CPU has it.
    auto model = ov::Core().compile_model(words[1], "CPU", ov::hint::inference_precision(ov::element::f32));
    auto request = model.create_infer_request();
    request.set_tensor("latent", latent.tensor);
    request.infer();
    if (!*request.get_tensor("finite").data<bool>()) throw std::runtime_error("the image is not finite");
    const ov::Tensor image = request.get_tensor("image_u8");  // (B, H, W, 3)
    const ov::Shape shape = image.get_shape();
    const size_t height = latent.height ? std::min(latent.height, shape[1]) : shape[1];
    const size_t width = latent.width ? std::min(latent.width, shape[2]) : shape[2];
    std::ofstream file(words[3], std::ios::binary);
    file << "P6\n" << width << " " << height << "\n255\n";
    for (size_t row = 0; row < height; row++)
        file.write(reinterpret_cast<const char*>(image.data<uint8_t>()) + row * shape[2] * 3, width * 3);
    std::cout << width << " x " << height << "\n";
    return file.flush() ? 0 : 1;
} catch (const std::exception& error) {
    std::cerr << "Error: " << error.what() << "\n";
    return 1;
}
