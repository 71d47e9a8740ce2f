// PASS: externalize-weights
// CHECK: util.global private @[[NAME:weight_[0-9a-f]+]] = #flow.parameter.named<"model"::"[[NAME]]"> : tensor<512xf32>
// CHECK-LABEL: @f
// CHECK: stablehlo.constant dense<1.000000e+00> : tensor<4xf32>
// CHECK-COUNT-2: util.global.load immutable @[[NAME]] : tensor<512xf32>
// CHECK-NOT: dense<2.000000e+00>
func.func @f() -> (tensor<4xf32>, tensor<512xf32>, tensor<512xf32>) {
  %small = stablehlo.constant dense<1.0> : tensor<4xf32>
  %a = stablehlo.constant dense<2.0> : tensor<512xf32>
  %b = stablehlo.constant dense<2.0> : tensor<512xf32>
  return %small, %a, %b : tensor<4xf32>, tensor<512xf32>, tensor<512xf32>
}
