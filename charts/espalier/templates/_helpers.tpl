{{/* Labels that choose pods. Context: dict root, component. */}}
{{- define "espalier.selector" -}}
app.kubernetes.io/name: espalier
app.kubernetes.io/instance: {{ .root.Release.Name }}
app.kubernetes.io/component: {{ .component }}
{{- end }}

{{/* Labels of every object. Context: dict root, component. */}}
{{- define "espalier.labels" -}}
{{ include "espalier.selector" . }}
app.kubernetes.io/version: {{ .root.Chart.AppVersion | quote }}
app.kubernetes.io/managed-by: {{ .root.Release.Service }}
helm.sh/chart: {{ .root.Chart.Name }}-{{ .root.Chart.Version }}
{{- with .root.Values.commonLabels }}
{{ toYaml . }}
{{- end }}
{{- end }}

{{/* The image's reference. */}}
{{- define "espalier.image" -}}
{{- with .Values.image -}}
{{- if .digest -}}
{{ .repository }}@{{ .digest }}
{{- else -}}
{{ .repository }}:{{ .tag | default $.Chart.AppVersion }}
{{- end -}}
{{- end -}}
{{- end }}

{{/* Image and its pull policy, of a container. */}}
{{- define "espalier.container.image" -}}
image: {{ include "espalier.image" . | quote }}
imagePullPolicy: {{ .Values.image.pullPolicy }}
{{- end }}

{{/* Secrets to pull with, of a pod. */}}
{{- define "espalier.pullSecrets" -}}
{{- with .Values.image.pullSecrets -}}
imagePullSecrets:
  {{- toYaml . | nindent 2 }}
{{- end -}}
{{- end }}

{{/* What all containers may do: nothing but the capabilities given. Context: dict capabilities, privileged, root (run as). */}}
{{- define "espalier.securityContext" -}}
{{- if .privileged -}}
privileged: true
{{- else -}}
allowPrivilegeEscalation: false
capabilities:
  drop: [ALL]
  {{- with .capabilities }}
  add: {{ toJson . }}
  {{- end }}
{{- end }}
readOnlyRootFilesystem: true
{{- if .asRoot }}
runAsUser: 0
runAsGroup: 0
{{- else }}
runAsNonRoot: true
runAsUser: 65532
runAsGroup: 65532
{{- end }}
seccompProfile: {type: RuntimeDefault}
{{- end }}

{{/* Where the API server's token is looked for, mounted by hand: it is bound to its pod, which the controller checks. */}}
{{- define "espalier.token.volume" -}}
- name: token
  projected:
    defaultMode: 0444
    sources:
      - serviceAccountToken: {path: token, expirationSeconds: 3607}
      - configMap: {name: kube-root-ca.crt, items: [{key: ca.crt, path: ca.crt}]}
      - downwardAPI: {items: [{path: namespace, fieldRef: {fieldPath: metadata.namespace}}]}
{{- end }}
{{- define "espalier.token.mount" -}}
- {name: token, mountPath: /var/run/secrets/kubernetes.io/serviceaccount, readOnly: true}
{{- end }}

{{/* Probes on the node's address. Context: the http values. What listens everywhere is asked by the loopback device. */}}
{{- define "espalier.probe.host" -}}
{{- if has .address (list "0.0.0.0" "[::]") }}127.0.0.1{{ else }}{{ trimAll "[]" .address }}{{ end -}}
{{- end }}
{{- define "espalier.probes" -}}
{{- $host := include "espalier.probe.host" . -}}
startupProbe:
  httpGet: {host: {{ $host | quote }}, path: /healthz, port: {{ .port }}}
  periodSeconds: 2
  failureThreshold: 60
livenessProbe:
  httpGet: {host: {{ $host | quote }}, path: /healthz, port: {{ .port }}}
  periodSeconds: 10
  timeoutSeconds: 5
  failureThreshold: 6
readinessProbe:
  httpGet: {host: {{ $host | quote }}, path: /readyz, port: {{ .port }}}
  periodSeconds: 5
  timeoutSeconds: 5
{{- end }}

{{/* Environment of whoever speaks with the API server. */}}
{{- define "espalier.env" -}}
- name: POD_NAMESPACE
  valueFrom: {fieldRef: {fieldPath: metadata.namespace}}
- name: POD_NAME
  valueFrom: {fieldRef: {fieldPath: metadata.name}}
- name: NODE_NAME
  valueFrom: {fieldRef: {fieldPath: spec.nodeName}}
{{- end }}

{{/* The policy's spec as the values say it. */}}
{{- define "espalier.policy.spec" -}}
{{- with .Values.policy -}}
{{- if not .clusterCIDRs -}}
{{- fail "policy.clusterCIDRs: needed: what pod addresses are, as in --set policy.clusterCIDRs={10.244.0.0/16}" -}}
{{- end -}}
clusterCIDRs: {{ toJson .clusterCIDRs }}
mode: {{ .mode }}
protocol: {{ .protocol }}
overlay: {{ .overlay | quote }}
{{- with .suites }}
suites: {{ toJson . }}
{{- end }}
udpEncapsulation: {{ .udpEncapsulation }}
establish: {{ .establish }}
perCPU: {{ .perCPU }}
masquerade: {{ .masquerade }}
dataplane: {{ .dataplane }}
{{- with .rekey }}
rekey:
  {{- range $key, $value := . }}
  {{ $key }}: {{ int64 $value }}
  {{- end }}
{{- end }}
transitionDeadlineSeconds: {{ int .transitionDeadlineSeconds }}
{{- end -}}
{{- end }}

{{/* Annotations of what `helm uninstall` makes first. Context: its place in the order. */}}
{{- define "espalier.hook" -}}
helm.sh/hook: pre-delete
helm.sh/hook-weight: {{ . | quote }}
helm.sh/hook-delete-policy: before-hook-creation,hook-succeeded
{{- end }}
