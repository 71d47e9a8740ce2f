// PASS: legalize-dynamism
// CHECK-LABEL: @f
// CHECK: stablehlo.pad %arg0, {{.*}}, low = [1], high = [1], interior = [0]
// CHECK: tensor.insert_slice %arg0 into
// CHECK-NOT: stablehlo.dynamic
func.func @f(%x: tensor<?xf32>) -> tensor<?xf32> {
  %z = stablehlo.constant dense<0.0> : tensor<f32>
  %zero = stablehlo.constant dense<0> : tensor<1xi32>
  %at = stablehlo.constant dense<0> : tensor<i32>
  %one = stablehlo.constant dense<1> : tensor<1xi32>
  %0 = stablehlo.dynamic_pad %x, %z, %one, %one, %zero : (tensor<?xf32>, tensor<f32>, tensor<1xi32>, tensor<1xi32>, tensor<1xi32>) -> tensor<?xf32>
  %1 = stablehlo.dynamic_update_slice %0, %x, %at : (tensor<?xf32>, tensor<?xf32>, tensor<i32>) -> tensor<?xf32>
  return %1 : tensor<?xf32>
}
