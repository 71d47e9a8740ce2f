// PASS: legalize-dynamism
// CHECK-LABEL: @f
// CHECK: tensor.insert_slice %arg0 into {{.*}}[0, 0] [{{.*}}, 3] [1, 1]
// CHECK: tensor.insert_slice %arg1 into {{.*}}[0, 3] [{{.*}}, 2] [1, 1]
// CHECK-NOT: stablehlo.concatenate
func.func @f(%x: tensor<?x3xf32>, %y: tensor<?x2xf32>) -> tensor<?x5xf32> {
  %0 = stablehlo.concatenate %x, %y, dim = 1 : (tensor<?x3xf32>, tensor<?x2xf32>) -> tensor<?x5xf32>
  return %0 : tensor<?x5xf32>
}
