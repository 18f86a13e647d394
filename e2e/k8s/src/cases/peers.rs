//! The suite's own pods.

use crate::ground::TEST_NAMESPACE;
use crate::images;

/// A pod on each node that says its node's name by HTTP, and a Service for them.
pub(super) fn manifest() -> String {
    let script = "busybox mkdir -p /tmp/www && busybox echo $NODE > /tmp/www/index.html && exec busybox httpd -f -p 8080 -h /tmp/www";
    format!(
        "apiVersion: v1\nkind: Service\nmetadata: {{name: peer, namespace: {TEST_NAMESPACE}}}\n\
         spec: {{selector: {{app: peer}}, ports: [{{port: 80, targetPort: 8080}}]}}\n\
         ---\n\
         apiVersion: apps/v1\nkind: DaemonSet\nmetadata: {{name: peer, namespace: {TEST_NAMESPACE}}}\n\
         spec:\n\
         \x20 selector: {{matchLabels: {{app: peer}}}}\n\
         \x20 template:\n\
         \x20   metadata: {{labels: {{app: peer}}}}\n\
         \x20   spec:\n\
         \x20     terminationGracePeriodSeconds: 1\n\
         \x20     automountServiceAccountToken: false\n\
         \x20     tolerations: [{{key: node-role.kubernetes.io/master, operator: Exists}}, \
         {{key: node-role.kubernetes.io/control-plane, operator: Exists}}]\n\
         \x20     containers:\n\
         \x20     - name: peer\n\
         \x20       image: {}\n\
         \x20       imagePullPolicy: Never\n\
         \x20       command: [/bin/busybox, sh, -c, \"{script}\"]\n\
         \x20       env: [{{name: NODE, valueFrom: {{fieldRef: {{fieldPath: spec.nodeName}}}}}}]\n",
        images::POD
    )
}
